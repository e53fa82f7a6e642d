"""From raw sources to training and evaluation examples, shard by shard."""

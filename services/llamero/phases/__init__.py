"""What a phase needs and leaves, the same on a laptop and in a pod."""

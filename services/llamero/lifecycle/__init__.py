"""Pure decisions: where a run stands, why a phase failed, whether an adapter may be served. No clock, no client, no file."""

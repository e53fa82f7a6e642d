"""What the words of llamero mean: the manifest, names, records, messages and results. Pydantic and the standard library only."""

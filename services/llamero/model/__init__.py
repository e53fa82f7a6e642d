"""Models as training, evaluation and engines see them: loading, templates, tokens, batches, attention, loss, adapters."""

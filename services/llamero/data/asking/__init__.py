"""Asking language models: questions in, answers out, nothing asked twice, nothing spent past its cap."""

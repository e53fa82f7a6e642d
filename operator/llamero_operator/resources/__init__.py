"""Manifests as plain dicts, built purely: no client, no clock, no cluster."""

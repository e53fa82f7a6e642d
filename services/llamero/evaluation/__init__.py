"""Measures an adapter against its base and writes the report."""

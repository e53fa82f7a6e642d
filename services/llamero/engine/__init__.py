"""The built-in CPU engine: one base, many adapters, TGI's surface."""

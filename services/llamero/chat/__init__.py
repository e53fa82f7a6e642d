"""The chat service: an OpenAI-compatible front door and a page."""

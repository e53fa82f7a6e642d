"""The llamero command: what a person types and sees."""

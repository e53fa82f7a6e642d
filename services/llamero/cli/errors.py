"""What a person asked for and can't have. The families stand beside what they speak of; commands catch this one."""


class CommandError(Exception):
    """One sentence that says why, and what to do."""

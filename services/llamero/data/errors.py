"""The errors that end a data phase: sentences that say what is wrong and what to do."""


class DataError(Exception):
    """Bad or missing sources, too many broken rows, nothing kept, or no space: final until the data or the manifest is mended."""


class NoSpaceError(DataError):
    """A disk is full: what is wrong is not the data."""

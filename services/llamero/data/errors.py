"""The one error that ends a data phase: a sentence that says what is wrong with the data and what to do."""


class DataError(Exception):
    """Bad or missing sources, too many broken rows, nothing kept, or no space: final until the data or the manifest is mended."""

"""What goes wrong with files near and far; each message says which file, what and what to do."""


class StorageError(Exception):
    """A file or folder that can't be read or written; the message says which and what to do."""


class TornFolder(StorageError):
    """A folder that does not agree with its manifest, or has none: it counts as not there."""


class NotThere(StorageError):
    """A web server that was asked says that it has no such file."""


class Away(StorageError):
    """The far end did not answer, or not to the end: what is wrong is neither the file nor its name, and another time may do."""


class Refused(StorageError):
    """What may not be read as it is (an address, a size, a way of packing): trying again changes nothing."""

"""What an error of a phase's process stands for: its exit code, a sentence for a person, and failure.json that holds both.

What is special to a phase (its own errors) comes from the phase as a table; what follows from a code is decided in
`lifecycle.failures`. Nothing here loads torch.
"""

import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from llamero.lifecycle.failures import RULES, PhaseExit
from llamero.model.errors import ModelError, SelfTestError
from llamero.storage import write_atomically

FAILURE_FILE = "failure.json"

# What the allocators of torch, CUDA's libraries and bitsandbytes say where they raise no class of their own.
_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")
_STORAGE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE})
# safetensors and torch.save raise classes of their own when a disk is full.
_STORAGE_PHRASES = ("No space left on device", "PytorchStreamWriter failed", "Disk quota exceeded")

log = logging.getLogger(__name__)


def classify_error(error: BaseException, own: Mapping[type[BaseException], PhaseExit]) -> tuple[PhaseExit, str]:
    """The exit code that an error stands for, and a sentence for a person. `own` are the phase's own errors, asked first."""
    for kind, code in own.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, SelfTestError):
        return PhaseExit.SELF_TEST_FAILED, str(error)
    if isinstance(error, ModelError):
        return PhaseExit.BAD_CONFIG, str(error)
    if is_out_of_memory(error):
        return PhaseExit.OUT_OF_MEMORY, f"Memory ran out: {_first_line(error)}"
    if is_storage_failure(error):
        return PhaseExit.STORAGE, f"The disk can't be written or read: {_first_line(error)}"
    return PhaseExit.BUG, f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that memory ran out (torch.OutOfMemoryError is a RuntimeError)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, (RuntimeError, OSError)) and any(p in str(error) for p in _OUT_OF_MEMORY_PHRASES):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_out_of_memory(cause)


def is_storage_failure(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that a disk is full, away or not to be written to."""
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
        return True
    if isinstance(error, Exception) and any(p in str(error) for p in _STORAGE_PHRASES):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_storage_failure(cause)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def write_failure(folder: Path, code: PhaseExit, message: str) -> None:
    """Leave failure.json {class, message} in a phase's folder for whoever supervises; never raises."""
    try:
        record = {"class": RULES[code].failure.value, "message": message}
        write_atomically(folder / FAILURE_FILE, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        log.error("failure.json can't be written to %s: %s", folder, error)


def read_failure(folder: Path) -> str | None:
    """The sentence of failure.json; None where there is none."""
    try:
        return str(json.loads((folder / FAILURE_FILE).read_bytes())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

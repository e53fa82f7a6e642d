"""Why a training ends before it is done: its own errors, and the exit code and sentence that any error stands for.

What follows from a code is decided in `lifecycle.failures`.
"""

import json
import logging
from pathlib import Path

import torch

from llamero.lifecycle.failures import RULES, PhaseExit
from llamero.model.errors import ModelError, SelfTestError
from llamero.storage import write_atomically
from llamero.training.config import ConfigError

FAILURE_FILE = "failure.json"

log = logging.getLogger(__name__)


class DataFailure(Exception):
    """Tokens that can't be trained on; the message says which and what to do."""


class Diverged(Exception):
    """The loss is no longer a figure to train on."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT came. Not an Exception, so that no library's `except Exception` can swallow it."""


# What the allocators of torch, CUDA's libraries and bitsandbytes say where they raise no class of their own.
_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, (RuntimeError, OSError)) and any(p in str(error) for p in _OUT_OF_MEMORY_PHRASES):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_out_of_memory(cause)


def classify_error(error: BaseException) -> tuple[PhaseExit, str]:
    """The exit code that an error stands for, and a sentence for a person."""
    if isinstance(error, Interrupted):
        return PhaseExit.INTERRUPTED, str(error)
    if isinstance(error, SelfTestError):
        return PhaseExit.SELF_TEST_FAILED, str(error)
    if isinstance(error, DataFailure):
        return PhaseExit.DATA_ERROR, str(error)
    if isinstance(error, Diverged):
        return PhaseExit.DIVERGED, str(error)
    if isinstance(error, (ConfigError, ModelError)):
        return PhaseExit.BAD_CONFIG, str(error)
    if is_out_of_memory(error):
        first_line = str(error).strip().split("\n")[0] or type(error).__name__
        return PhaseExit.OUT_OF_MEMORY, f"Memory ran out: {first_line}"
    return PhaseExit.BUG, f"{type(error).__name__}: {error}"


def write_failure(folder: Path, code: PhaseExit, message: str) -> None:
    """Leave failure.json {class, message} in the checkpoints folder for whoever supervises; never raises."""
    try:
        record = {"class": RULES[code].failure.value, "message": message}
        write_atomically(folder / FAILURE_FILE, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        log.error("failure.json can't be written to %s: %s", folder, error)

"""Why an evaluation ends before it is done, and the exit code and sentence that any error stands for."""

import json
import logging
from pathlib import Path

from llamero.lifecycle.failures import RULES, PhaseExit
from llamero.storage import StorageError, write_atomically

FAILURE_FILE = "failure.json"

# What the allocators of torch and CUDA's libraries say where they raise no class of their own.
_OUT_OF_MEMORY_PHRASES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")

log = logging.getLogger(__name__)


class PromptError(Exception):
    """A file of prompts or records that can't be read; the message says where and what to do."""


class Diverged(Exception):
    """A model whose log-probabilities are no numbers."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT came. Not an Exception, so that no library's `except Exception` can swallow it."""


def classify_error(error: BaseException) -> tuple[PhaseExit, str]:
    """The exit code that an error stands for, and a sentence for a person."""
    # Late, so that a wrong configuration is told of without loading torch.
    from llamero.evaluation.config import ConfigError
    from llamero.model.errors import ModelError, SelfTestError

    if isinstance(error, Interrupted):
        return PhaseExit.INTERRUPTED, f"{error}: nothing is kept of an evaluation that is cut short; start it again."
    if isinstance(error, SelfTestError):
        return PhaseExit.SELF_TEST_FAILED, str(error)
    if isinstance(error, (PromptError, StorageError)):
        return PhaseExit.DATA_ERROR, str(error)
    if isinstance(error, Diverged):
        return PhaseExit.DIVERGED, str(error)
    if isinstance(error, (ConfigError, ModelError)):
        return PhaseExit.BAD_CONFIG, str(error)
    if is_out_of_memory(error):
        first_line = str(error).strip().split("\n")[0] or type(error).__name__
        return PhaseExit.OUT_OF_MEMORY, f"Memory ran out: {first_line}"
    return PhaseExit.BUG, f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out (torch.OutOfMemoryError is a RuntimeError)."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(p in str(error) for p in _OUT_OF_MEMORY_PHRASES)


def write_failure(folder: Path, code: PhaseExit, message: str) -> None:
    """Leave failure.json {class, message} for whoever supervises; never raises."""
    try:
        record = {"class": RULES[code].failure.value, "message": message}
        write_atomically(folder / FAILURE_FILE, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        log.error("failure.json can't be written to %s: %s", folder, error)

"""Why an evaluation ends before it is done: its own errors, and what they stand for besides what any phase's do."""

from llamero.evaluation.config import ConfigError
from llamero.lifecycle.failures import PhaseExit
from llamero.model import failures
from llamero.model.failures import FAILURE_FILE as FAILURE_FILE
from llamero.model.failures import write_failure as write_failure
from llamero.storage import StorageError


class PromptError(Exception):
    """A file of prompts or records that can't be read; the message says where and what to do."""


class Diverged(Exception):
    """A model whose log-probabilities are no numbers."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT came. Not an Exception, so that no library's `except Exception` can swallow it."""


_OWN: dict[type[BaseException], PhaseExit] = {
    PromptError: PhaseExit.DATA_ERROR,
    StorageError: PhaseExit.DATA_ERROR,
    Diverged: PhaseExit.DIVERGED,
    ConfigError: PhaseExit.BAD_CONFIG,
}


def classify_error(error: BaseException) -> tuple[PhaseExit, str]:
    """The exit code that an error of an evaluation stands for, and a sentence for a person."""
    if isinstance(error, Interrupted):
        return PhaseExit.INTERRUPTED, f"{error}: nothing is kept of an evaluation that is cut short; start it again."
    return failures.classify_error(error, _OWN)

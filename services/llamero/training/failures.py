"""Why a training ends before it is done: its own errors, and what they stand for besides what any phase's do."""

from llamero.lifecycle.failures import PhaseExit
from llamero.model import failures
from llamero.model.failures import FAILURE_FILE as FAILURE_FILE
from llamero.model.failures import write_failure as write_failure
from llamero.training.config import ConfigError


class DataFailure(Exception):
    """Tokens that can't be trained on; the message says which and what to do."""


class Diverged(Exception):
    """The loss is no longer a figure to train on."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT came. Not an Exception, so that no library's `except Exception` can swallow it."""


_OWN: dict[type[BaseException], PhaseExit] = {
    Interrupted: PhaseExit.INTERRUPTED,
    DataFailure: PhaseExit.DATA_ERROR,
    Diverged: PhaseExit.DIVERGED,
    ConfigError: PhaseExit.BAD_CONFIG,
}


def classify_error(error: BaseException) -> tuple[PhaseExit, str]:
    """The exit code that an error of a training stands for, and a sentence for a person."""
    return failures.classify_error(error, _OWN)

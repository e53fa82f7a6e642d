"""An attempt from its message to its outcome: the message is checked, the work is done, and whatever comes of it is an answer."""

import json
import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from llamero import __version__
from llamero.lifecycle.failures import PhaseExit
from llamero.model.errors import ModelError, Unreachable
from llamero.model.failures import classify_error
from llamero.pods.pod import AttemptFailure, Pod, Stopped
from llamero.spec.status import WorkKind
from llamero.spec.tasks import MESSAGE_VERSION, Outcome, WorkMessage
from llamero.storage import StorageError

Work = Callable[[WorkMessage, Pod], Outcome | None]

ONE_RELEASE = f"Operator and workers must be of one release (this is {__version__})."

log = logging.getLogger(__name__)


def read_message(message: dict[str, Any] | str) -> WorkMessage:
    """The message. Raises AttemptFailure with a sentence that names both versions where it can't be understood."""
    try:
        raw = json.loads(message) if isinstance(message, str) else message
        version = raw.get("version")
    except (ValueError, AttributeError):
        raw, version = {}, None
    if version != MESSAGE_VERSION:
        told = f"This worker reads messages of version {MESSAGE_VERSION}, but was sent one of version {version}."
        raise AttemptFailure(PhaseExit.BAD_CONFIG, f"{told} {ONE_RELEASE}")
    try:
        return WorkMessage.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"The message of version {version} can't be read by this worker of version {MESSAGE_VERSION} ({where}: {first['msg']})."
        raise AttemptFailure(PhaseExit.BAD_CONFIG, f"{told} {ONE_RELEASE}") from error


def choose_work(kind: WorkKind) -> Work:
    """What a kind of attempt does; loaded when it is needed, since most workers need little of it."""
    match kind:
        case WorkKind.PREPARE:
            from llamero.pods.prepare import prepare as work
        case WorkKind.TRAIN:
            from llamero.pods.train import train as work
        case WorkKind.EVALUATE:
            from llamero.pods.evaluate import evaluate as work
        case WorkKind.FETCH:
            from llamero.pods.fetch import fetch as work
        case WorkKind.PROBE:
            from llamero.pods.probe import probe as work
        case WorkKind.CLEAN:
            from llamero.pods.clean import clean as work
        case WorkKind.LOGS:
            from llamero.pods.logs import print_logs as work
    return work


def do_work(message: WorkMessage, pod: Pod) -> Outcome | None:
    """The outcome of an attempt, whatever comes of it; None where another pod of the attempt is at it."""
    try:
        return choose_work(message.id.kind)(message, pod)
    except AttemptFailure as failure:
        return answer_failure(failure, pod)
    except Stopped as stop:
        return pod.answer(PhaseExit.INTERRUPTED, str(stop))
    except StorageError as error:
        return pod.answer(PhaseExit.STORAGE, f"{error} Free space on the storage, or mend its address or credentials.")
    except Unreachable as error:
        return pod.answer(PhaseExit.STORAGE, str(error))
    except ModelError as error:
        return pod.answer(PhaseExit.BAD_CONFIG, str(error))
    except BaseException as error:
        code, sentence = classify_error(error, {})
        if code is PhaseExit.BUG:
            log.exception("the attempt ended by an error that nobody foresaw")
        return pod.answer(code, sentence)


def answer_failure(failure: AttemptFailure, pod: Pod) -> Outcome:
    """The outcome that a failure stands for."""
    return pod.answer(failure.code, str(failure), failure.kind)

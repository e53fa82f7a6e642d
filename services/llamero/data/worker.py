"""What a worker does with a line: runs the task and answers how it went. A failure is an answer, too."""

import errno
import importlib
import select
import traceback
from typing import IO, Any

import orjson

from llamero.data.errors import DataError
from llamero.data.shared import SharedStorageError
from llamero.data.tasks import run_task
from llamero.model.errors import ModelError
from llamero.storage import StorageError

DATA, SPACE, STORAGE, BUG = "data", "space", "storage", "bug"
_IDLE_SECONDS = 0.1


def serve_tasks(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each task's line: {rows} while it runs, at last {folder, reused} or {failure, message}. Ends with its input."""
    _import_while_idle(tasks)
    for line in iter(tasks.readline, b""):
        task = orjson.loads(line)
        try:
            shard = run_task(task, lambda rows: _answer(answers, {"rows": rows}))
            _answer(answers, {"folder": shard.uri, "reused": shard.is_reused})
        except Exception as error:
            failure, message = describe_failure(error)
            _answer(answers, {"failure": failure, "message": message})


def _import_while_idle(tasks: IO[bytes]) -> None:
    """Use the time until there is a task for what takes seconds to import."""
    if not select.select([tasks], [], [], _IDLE_SECONDS)[0]:
        importlib.import_module("llamero.data.clean")
        importlib.import_module("transformers.models.auto.tokenization_auto")


def describe_failure(error: Exception) -> tuple[str, str]:
    """What kind of failure it is, and a sentence (for a bug its traceback)."""
    full = error if isinstance(error, OSError) else error.__cause__
    if isinstance(full, OSError) and full.errno in (errno.ENOSPC, errno.EDQUOT):
        return SPACE, f"{full.strerror} ({full.filename})" if full.filename else str(full.strerror)
    if isinstance(error, SharedStorageError):
        return STORAGE, str(error)
    if isinstance(error, (DataError, StorageError, ModelError)):
        return DATA, str(error)
    return BUG, "".join(traceback.format_exception(error))


def _answer(answers: IO[bytes], row: dict[str, Any]) -> None:
    answers.write(orjson.dumps(row) + b"\n")

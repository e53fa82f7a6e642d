"""What a worker does with a line: runs the task and answers how it went. A failure is an answer, too."""

import errno
import importlib
import select
import traceback
from typing import IO, Any

import orjson

from llamero.data.errors import DataError
from llamero.data.tasks import run_task
from llamero.model.errors import ModelError
from llamero.storage import StorageError

DATA, SPACE, BUG = "data", "space", "bug"
_IDLE_SECONDS = 0.1


def serve_tasks(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each task's line: {rows} while it runs, at last {folder, reused} or {failure, message}. Ends with its input."""
    _import_while_idle(tasks)
    for line in iter(tasks.readline, b""):
        task = orjson.loads(line)
        try:
            shard = run_task(task, lambda rows: _answer(answers, {"rows": rows}))
            _answer(answers, {"folder": str(shard.folder), "reused": shard.is_reused})
        except Exception as error:
            failure, message = describe_failure(error)
            _answer(answers, {"failure": failure, "message": message})


def _import_while_idle(tasks: IO[bytes]) -> None:
    """Use the time until there is a task for what takes seconds to import."""
    if not select.select([tasks], [], [], _IDLE_SECONDS)[0]:
        importlib.import_module("llamero.data.clean")
        importlib.import_module("llamero.model.loading")


def describe_failure(error: Exception) -> tuple[str, str]:
    """What kind of failure it is, and a sentence (for a bug its traceback)."""
    if isinstance(error, (DataError, StorageError, ModelError)):
        return DATA, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SPACE, f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
    return BUG, "".join(traceback.format_exception(error))


def _answer(answers: IO[bytes], row: dict[str, Any]) -> None:
    answers.write(orjson.dumps(row) + b"\n")

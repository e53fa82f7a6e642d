"""What a worker does with a line: runs the task and answers how it went. A failure is an answer, too."""

import errno
import importlib
import select
import socket
import traceback
from collections.abc import Sequence
from typing import IO, Any

import orjson

from llamero.data.errors import DataError
from llamero.data.shared import SharedStorageError
from llamero.data.tasks import run_task
from llamero.model.errors import ModelError
from llamero.storage import Away, StorageError

DATA, SPACE, STORAGE, BUG = "data", "space", "storage", "bug"
_IDLE_SECONDS = 0.1
# What clients of web servers and object stores raise where nobody answered, or the answer broke off.
_AWAY = frozenset(
    {
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ClientOSError",
        "ClientPayloadError",
        "ConnectionTimeoutError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ReadTimeoutError",
    }
)


def serve_tasks(tasks: IO[bytes], answers: IO[bytes], modules: Sequence[str] = ()) -> None:
    """Answer each task's line: {rows} while it runs, at last {folder, reused} or {failure, message}. Ends with its input.

    `modules` take seconds to import: the time until there is a task is used for them.
    """
    if not select.select([tasks], [], [], _IDLE_SECONDS)[0]:
        for module in modules:
            importlib.import_module(module)
    for line in iter(tasks.readline, b""):
        task = orjson.loads(line)
        try:
            shard = run_task(task, lambda rows: _answer(answers, {"rows": rows}))
            _answer(answers, {"folder": shard.uri, "reused": shard.is_reused})
        except Exception as error:
            failure, message = describe_failure(error)
            _answer(answers, {"failure": failure, "message": message})


def describe_failure(error: Exception) -> tuple[str, str]:
    """What kind of failure it is, and a sentence (for a bug its traceback)."""
    full = error if isinstance(error, OSError) else error.__cause__
    if isinstance(full, OSError) and full.errno in (errno.ENOSPC, errno.EDQUOT):
        return SPACE, f"{full.strerror} ({full.filename})" if full.filename else str(full.strerror)
    if isinstance(error, SharedStorageError) or (isinstance(error, StorageError) and is_away(error)):
        return STORAGE, str(error)
    if isinstance(error, (DataError, StorageError, ModelError)):
        return DATA, str(error)
    return BUG, "".join(traceback.format_exception(error))


def is_away(error: BaseException | None) -> bool:
    """Whether a network failed, as against an answer that says no: what is wrong then is neither the data nor the manifest."""
    while error is not None:
        if isinstance(error, (Away, ConnectionError, TimeoutError, socket.gaierror)) or type(error).__name__ in _AWAY:
            return True
        error = error.__cause__
    return False


def _answer(answers: IO[bytes], row: dict[str, Any]) -> None:
    answers.write(orjson.dumps(row) + b"\n")

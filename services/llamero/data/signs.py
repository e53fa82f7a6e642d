"""What workers leave beside a shard's folder for the coordinator: who is at it and how far (a claim), and how it failed.

Both are hints: a lost one costs time, a stale one costs a task done twice, and neither changes a byte of the outcome.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import orjson

from llamero.data.shared import remove_file
from llamero.storage import StorageError, read_file, write_file

BEAT_SECONDS = 5.0
CLAIM_SUFFIX = ".claim.json"
FAILURE_SUFFIX = ".failure.json"

WORKER = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
"""This process, as claims call it."""


@dataclass(frozen=True)
class Claim:
    """Who is at a task: `beat` counts up while it lives, `at` is its clock in seconds since the epoch."""

    worker: str
    beat: int
    rows: int
    at: float


@dataclass(frozen=True)
class Failure:
    """How a task failed: its class (`worker.describe_failure`) and a sentence, for a bug the traceback."""

    failure: str
    message: str


def claim_uri(folder: str) -> str:
    """The claim on the task that makes this shard."""
    return folder + CLAIM_SUFFIX


def failure_uri(folder: str) -> str:
    """The failure of the task that makes this shard."""
    return folder + FAILURE_SUFFIX


def read_claim(folder: str) -> Claim | None:
    """The claim on a shard's task, if there is one that can be read."""
    try:
        content = read_file(claim_uri(folder))
        return Claim(**orjson.loads(content)) if content is not None else None
    except (StorageError, ValueError, TypeError):
        return None


class HeldClaim:
    """A claim that is being held; `rows` is told with the next beat."""

    def __init__(self, folder: str, worker: str) -> None:
        self.rows = 0
        self._folder, self._worker, self._beat = folder, worker, 0

    def write(self) -> None:
        self._beat += 1
        claim = {"worker": self._worker, "beat": self._beat, "rows": self.rows, "at": time.time()}
        with suppress(StorageError):
            write_file(claim_uri(self._folder), orjson.dumps(claim))


@contextmanager
def hold_claim(folder: str, worker: str = WORKER, beat_seconds: float = BEAT_SECONDS) -> Iterator[HeldClaim]:
    """Claim a shard's task, tell it again every few seconds from a thread, and take the claim away at the end."""
    claim, is_over = HeldClaim(folder, worker), threading.Event()

    def beat() -> None:
        while not is_over.wait(beat_seconds):
            claim.write()

    claim.write()
    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        is_over.set()
        thread.join()
        remove_sign(claim_uri(folder))


def write_failure(folder: str, failure: Failure) -> None:
    """Leave a failure for the coordinator. Raises StorageError."""
    write_file(failure_uri(folder), orjson.dumps({"failure": failure.failure, "message": failure.message}))


def take_failure(folder: str) -> Failure | None:
    """The failure that a worker left, removed as it is read."""
    try:
        content = read_file(failure_uri(folder))
        if content is None:
            return None
        remove_sign(failure_uri(folder))
        return Failure(**orjson.loads(content))
    except (StorageError, ValueError, TypeError):
        return None


def remove_sign(uri: str) -> None:
    """Remove a claim or a failure; one that is not there, or can't be removed, is no error."""
    with suppress(StorageError, OSError):
        remove_file(uri)

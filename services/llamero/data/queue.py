"""Data tasks shared with the workers of other pods: a queue's messages are hints, the manifests in the shared folder are the truth.

The coordinator sends every task of a step, does tasks itself from the end of the list, and counts a task as done when its
shard's manifest stands in the folder. A lost message, a doubled one, a dead worker or none at all cost time and change no byte.
How a message travels is left to the caller.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamero.data.errors import DataError, NoSpaceError
from llamero.data.pool import MAX_ATTEMPTS, OnDone, OnRows
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.signs import (
    CLAIM_SUFFIX,
    FAILURE_SUFFIX,
    WORKER,
    Claim,
    Failure,
    claim_uri,
    failure_uri,
    hold_claim,
    read_claim,
    remove_sign,
    take_failure,
    write_failure,
)
from llamero.data.tasks import Obsolete, Task, read_listing, run_task
from llamero.data.worker import DATA, SPACE, STORAGE, describe_failure
from llamero.storage import StorageError

log = logging.getLogger(__name__)

RESEND_SECONDS = 30.0
STALE_SECONDS = 30.0
TAKEOVER_SECONDS = 900.0
POLL_SECONDS = 0.5
_FIRST_POLL_SECONDS = 0.02
_LOOK_SECONDS = 1.0
_MAX_RESEND_FACTOR = 16

Send = Callable[[Task], None]
"""Hands a task (JSON) to the other workers, as a hint: may lose or double it, should not block, may raise."""


def run_shard_task(task: Task, scratch: Path | None = None) -> None:
    """Do a task that a coordinator sent, or find it done, at work elsewhere or over. A failure is left in a file, not raised.

    `scratch` is a local folder of this worker alone; shards in an object store need one.
    """
    folder, files = task["folder"], SharedFiles(scratch)
    try:
        if _is_settled(task, files):
            return
        with hold_claim(folder) as claim:
            run_task(task, lambda rows: setattr(claim, "rows", rows), files)
    except Obsolete:
        return
    except Exception as error:
        _leave_failure(task, Failure(*describe_failure(error)))


def _is_settled(task: Task, files: SharedFiles) -> bool:
    """Whether there is nothing to do: done, over, or another worker is at it and lives by its clock."""
    if "listing" in task:
        read_listing(task)
    if files.read(task["folder"]) is not None:
        return True
    claim = read_claim(task["folder"])
    return claim is not None and claim.worker != WORKER and abs(time.time() - claim.at) < STALE_SECONDS


def _leave_failure(task: Task, failure: Failure) -> None:
    log.warning("The data task %s for %s failed: %s", task["task"], task["folder"], failure.message)
    try:
        if "listing" in task:
            read_listing(task)  # else a folder that was cleared would come again
        write_failure(task["folder"], failure)
    except Obsolete:
        return
    except StorageError as error:
        log.warning("The failure can't be left for the coordinator: %s", error)


class QueueRunner:
    """A `pool.TaskRunner` for the coordinator's pod.

    `send` gets each task as JSON; the other workers call `run_shard_task` with it. Tasks that nobody took up are sent again
    when no other worker took one for `resend_seconds` (later ever more rarely). A claim that does not change for
    `stale_seconds`, or whose rows don't for `takeover_seconds`, is void. `scratch`: see `run_shard_task`.
    """

    def __init__(
        self,
        send: Send,
        *,
        scratch: Path | None = None,
        resend_seconds: float = RESEND_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        takeover_seconds: float = TAKEOVER_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.send, self.files = send, SharedFiles(scratch)
        self.resend_seconds, self.stale_seconds = resend_seconds, stale_seconds
        self.takeover_seconds, self.poll_seconds = takeover_seconds, poll_seconds
        self._away_until = 0.0

    def try_send(self, task: Task) -> bool:
        """Hand a task to the others. False where the queue can't be reached; it is then left alone for `resend_seconds`, since
        finding out takes seconds and a preparation has many rounds."""
        if time.monotonic() < self._away_until:
            return False
        try:
            self.send(task)
        except Exception as error:  # each broker's client has a family of its own
            log.warning("Data tasks can't be sent to the other workers: %s: %s", type(error).__name__, error)
            self._away_until = time.monotonic() + self.resend_seconds
            return False
        return True

    def run(self, tasks: Sequence[Task], on_rows: OnRows, on_done: OnDone) -> list[Shard]:
        """All tasks' shards in the tasks' order. Raises DataError, StorageError where the storage fails, RuntimeError for a bug."""
        step = _Step(self, tasks, on_rows, on_done)
        step.find_finished()
        step.forget_signs()
        step.send_open()
        wait = _FIRST_POLL_SECONDS
        while True:
            step.look()
            if not step.open:
                return [step.shards[number] for number in range(len(tasks))]
            step.send_again()
            number = step.choose_own()
            if number is not None:
                step.do(number)
                wait = _FIRST_POLL_SECONDS
                continue
            time.sleep(wait)
            wait = min(2 * wait, self.poll_seconds)


@dataclass
class _Seen:
    """A claim of another worker as it was seen last, by this process's clock."""

    claim: Claim
    beat_at: float
    rows_at: float


class _Step:
    """One step's tasks on their way: what is done, who is at what, what failed how often."""

    def __init__(self, runner: QueueRunner, tasks: Sequence[Task], on_rows: OnRows, on_done: OnDone) -> None:
        self.runner, self.files, self.tasks = runner, runner.files, tasks
        self.on_rows, self.on_done = on_rows, on_done
        self.shards: dict[int, Shard] = {}
        self.open = dict.fromkeys(range(len(tasks)))
        self.seen: dict[int, _Seen] = {}
        self.failures = [0] * len(tasks)
        self.own: int | None = None
        self.sign_at = self.sent_at = self.looked_at = time.monotonic()
        self.resend_factor = 1

    # -- before anything is sent -----------------------------------------------------------------------------------------------

    def find_finished(self) -> None:
        """Count what an earlier run or attempt left, every byte checked where that is cheap; what is damaged is removed."""
        names = self._list_names()
        for number in list(self.open):
            folder = self.tasks[number]["folder"]
            if not _is_among(folder, names):
                continue
            shard = self.files.read(folder, read_content=True)
            if shard is not None:
                self._count(number, shard, is_reused=True)
            else:
                self.files.discard(folder)

    def forget_signs(self) -> None:
        """What is left of an earlier attempt's claims and failures says nothing about this one."""
        names = self._list_names()
        for number in self.open:
            folder = self.tasks[number]["folder"]
            for suffix, uri in ((CLAIM_SUFFIX, claim_uri(folder)), (FAILURE_SUFFIX, failure_uri(folder))):
                if _is_among(folder + suffix, names):
                    remove_sign(uri)

    # -- messages --------------------------------------------------------------------------------------------------------------

    def send_open(self) -> None:
        """Send what nobody is at; where the queue can't be reached the coordinator goes on alone."""
        self.sent_at = time.monotonic()
        for number in self.open:
            if number == self.own or self._is_claimed(number):
                continue
            if not self.runner.try_send(self.tasks[number]):
                return

    def send_again(self) -> None:
        """Where no other worker took up a task for long, messages may be lost: send all that nobody is at once more."""
        quiet = time.monotonic() - max(self.sign_at, self.sent_at)
        if quiet < self.runner.resend_seconds * self.resend_factor:
            return
        self.resend_factor = min(2 * self.resend_factor, _MAX_RESEND_FACTOR)
        self.send_open()

    # -- what the folder says --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Count what is done, see who is at what, and take failures in. Raises as `_take_failure` does."""
        self.looked_at = time.monotonic()
        names = self._list_names()
        for number in list(self.open):
            if number == self.own:
                continue
            folder = self.tasks[number]["folder"]
            if _is_among(folder, names) and (shard := self.files.read(folder)) is not None:
                self._hear()
                self._count(number, shard, is_reused=False)
                continue
            if _is_among(folder + FAILURE_SUFFIX, names) and (failure := take_failure(folder)) is not None:
                self.seen.pop(number, None)
                self._take_failure(number, failure)
            if _is_among(folder + CLAIM_SUFFIX, names):
                self._see_claim(number, read_claim(folder))
            else:
                self.seen.pop(number, None)

    def _see_claim(self, number: int, claim: Claim | None) -> None:
        if claim is None:
            return
        now, before = time.monotonic(), self.seen.get(number)
        if before is None or before.claim.worker != claim.worker:
            self._hear()
            self.seen[number] = _Seen(claim, now, now)
        elif before.claim != claim:
            moved = claim.rows != before.claim.rows
            self.seen[number] = _Seen(claim, now, now if moved else before.rows_at)
        if claim.rows and (before is None or before.claim.rows != claim.rows):
            self.on_rows(number, claim.rows)

    def _hear(self) -> None:
        self.sign_at, self.resend_factor = time.monotonic(), 1

    def _is_claimed(self, number: int) -> bool:
        seen, now = self.seen.get(number), time.monotonic()
        if seen is None:
            return False
        is_stale = now - seen.beat_at > self.runner.stale_seconds
        return not is_stale and now - seen.rows_at <= self.runner.takeover_seconds

    def _list_names(self) -> dict[str, frozenset[str]]:
        """What stands in the folders that the open tasks' shards go to."""
        parents = {self.tasks[number]["folder"].rpartition("/")[0] for number in self.open}
        return {parent: self.files.list(parent) for parent in parents}

    def _count(self, number: int, shard: Shard, is_reused: bool) -> None:
        self.open.pop(number, None)
        self.seen.pop(number, None)
        self.shards[number] = Shard(shard.uri, shard.files, shard.summary, is_reused)
        self.on_done(number, self.shards[number])

    def _take_failure(self, number: int, failure: Failure) -> None:
        """Let a task be tried again, or raise what ends the preparation."""
        task = self.tasks[number]
        if failure.failure == DATA:
            raise DataError(failure.message)
        if failure.failure == SPACE:
            raise NoSpaceError(
                f"No space is left for {task['folder']}: {failure.message}. Free some, or enlarge the storage."
            )
        self.failures[number] += 1
        if self.failures[number] < MAX_ATTEMPTS:
            log.warning(
                "The data task %s for %s failed and is tried again: %s", task["task"], task["folder"], failure.message
            )
            self.runner.try_send(self.tasks[number])
            return
        if failure.failure == STORAGE:
            raise StorageError(failure.message)
        raise RuntimeError(f"The data task {task['task']} for {task['folder']} failed:\n{failure.message}")

    # -- own work --------------------------------------------------------------------------------------------------------------

    def choose_own(self) -> int | None:
        """The last task that nobody is at: the others take theirs from the front."""
        return next((number for number in reversed(self.open) if not self._is_claimed(number)), None)

    def do(self, number: int) -> None:
        """Do a task here, looking after the others meanwhile."""
        task, caught = self.tasks[number], list[Exception]()
        self.own = number

        def report(rows: int) -> None:
            claim.rows = rows
            self.on_rows(number, rows)
            if not caught and time.monotonic() - self.looked_at >= _LOOK_SECONDS:
                try:
                    self.look()
                    self.send_again()
                except Exception as error:  # not this task's failure: raised when it is done
                    caught.append(error)

        try:
            with hold_claim(task["folder"]) as claim:
                shard = run_task(task, report, self.files)
        except Exception as error:
            self._take_failure(number, Failure(*describe_failure(error)))
        else:
            self._count(number, shard, is_reused=False)
        finally:
            self.own = None
        if caught:
            raise caught[0]


def _is_among(uri: str, names: dict[str, frozenset[str]]) -> bool:
    parent, _, name = uri.rpartition("/")
    return name in names.get(parent, ())

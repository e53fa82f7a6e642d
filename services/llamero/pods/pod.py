"""The life of a pod: from its start over being told to stop to the one place where it ends, with a termination message and a code.

A pod ends by itself as soon as its attempt is done. Told to stop (SIGTERM) it ends at once where nothing would be lost by it; who
has something to save says so with `saving()`, and has until the grace is nearly over. What the pod does stands in the other modules.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.logbook import Logbook
from llamero.pods.progress import ProgressTeller
from llamero.pods.settings import PodSettings
from llamero.spec.progress import Progress
from llamero.spec.status import WorkKind
from llamero.spec.tasks import Outcome

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
MAX_MESSAGE = 1024
KEEP_LOG_SECONDS = 10.0

log = logging.getLogger(__name__)


class AttemptFailure(Exception):
    """An attempt that can't go on: its code, a sentence, and what failed where that is not the attempt's own kind."""

    def __init__(self, code: PhaseExit, message: str, kind: WorkKind | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind


class Stopped(Exception):
    """The pod was told to stop, and what could be saved is saved; the message says what."""


class Pod:
    """This process as a pod. One a process; made in the main thread."""

    def __init__(self, settings: PodSettings, keep_log: bool = True) -> None:
        self.settings = settings
        self.logbook = Logbook(settings.scratch / "pod.log", settings.log_uri if keep_log else None)
        self.progress = ProgressTeller(settings)
        self._ending = threading.Lock()
        self._gate = threading.Lock()
        self._stopped_at: float | None = None
        self._is_saving = 0
        self._is_busy = False
        self._is_hang_watched = False
        self._idle_since: float | None = None
        self._look: Callable[[], Outcome | None] = lambda: None
        self._looked_at = time.monotonic()

    # -- start -----------------------------------------------------------------------------------------------------------------

    def start(self, take_output: bool = True) -> None:
        """Listen to signals, take over the output, and start to tell progress."""
        self.settings.scratch.mkdir(parents=True, exist_ok=True)
        if take_output:
            self.logbook.start()
        faulthandler.enable()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Celery would start the worker anew on SIGHUP, and print stacks on SIGUSR1 only where a debugger is installed.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        self.progress.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def watch_idleness(self, look: Callable[[], Outcome | None] = lambda: None) -> None:
        """End the pod when it has had no task for `idleSeconds`; `look` is asked between tasks and may end it otherwise, or `stay()`."""
        self._look = look
        self._idle_since = time.monotonic()

    def stay(self) -> None:
        """There is a reason to wait for the next task: the pod is not idle."""
        self._idle_since = time.monotonic()

    # -- work ------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A task is at work: the pod is not idle."""
        with self._gate:
            self._is_busy = True
        try:
            yield
        finally:
            with self._gate:
                self._is_busy = False
                self._idle_since = time.monotonic() if self._idle_since is not None else None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within it a stop waits: whoever is at work looks at `is_stopped` and ends by Stopped."""
        self._is_saving += 1
        try:
            yield
        finally:
            self._is_saving -= 1

    @contextmanager
    def hang_watched(self) -> Iterator[None]:
        """Within it no progress for `progressDeadlineSeconds` ends the pod: for work that has no process of its own."""
        self.progress.changed_at = time.monotonic()
        self._is_hang_watched = True
        try:
            yield
        finally:
            self._is_hang_watched = False

    def is_stopped(self) -> bool:
        """Whether the pod was told to stop."""
        return self._stopped_at is not None

    def seconds_left(self) -> float:
        """Of the grace, for who saves; infinite while nobody said stop. What ending takes is left out."""
        if self._stopped_at is None:
            return float("inf")
        return self._stopped_at + self.usable_grace_seconds - time.monotonic()

    @property
    def usable_grace_seconds(self) -> float:
        """The grace without what ending takes."""
        return max(self.settings.grace_seconds * 0.5, self.settings.grace_seconds - 5.0)

    def tell(self, phase: str, activity: str) -> None:
        """The beginning of an activity, as progress and in the log."""
        log.info("%s: %s", phase, activity)
        self.progress.tell(Progress(phase, activity))

    # -- end -------------------------------------------------------------------------------------------------------------------

    def answer(self, code: PhaseExit, message: str = "", kind: WorkKind | None = None) -> Outcome:
        """An outcome of this pod's attempt."""
        return Outcome(
            id=self.settings.attempt,
            pod=self.settings.pod_uid,
            exit_code=int(code),
            message=message[:MAX_MESSAGE],
            kind=kind if kind != self.settings.attempt.kind else None,
        )

    def end(self, outcome: Outcome) -> NoReturn:
        """Write the termination message, keep the log, and end the process with the outcome's code. Who comes second waits for the end."""
        if not self._ending.acquire(blocking=False):
            while True:
                time.sleep(60)
        level = logging.INFO if outcome.exit_code == 0 else logging.ERROR
        log.log(level, "the attempt ends with code %d. %s", outcome.exit_code, outcome.message)
        try:
            self.settings.termination_log.write_text(outcome.to_termination_message(), encoding="utf-8")
        except OSError as error:
            log.error("the termination message can't be written to %s: %s", self.settings.termination_log, error)
        self.progress.close()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.logbook.close(min(KEEP_LOG_SECONDS, max(1.0, self.seconds_left())))
        os._exit(outcome.exit_code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing else is done in here: the thread that is interrupted may hold any lock.
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()

    def _watch(self) -> None:
        """Ends the pod where the main thread does not: stopped with nothing to save, out of grace, hung, idle."""
        while True:
            time.sleep(POLL_SECONDS)
            if self._stopped_at is not None:
                if not self._is_saving:
                    self.end(self.answer(PhaseExit.INTERRUPTED, "The pod was told to stop."))
                if self.seconds_left() <= 0:
                    message = "The pod was told to stop and its grace is over: what came after the last kept checkpoint is lost."
                    self.end(self.answer(PhaseExit.INTERRUPTED, message))
            elif self._is_hung():
                faulthandler.dump_traceback(all_threads=True)
                seconds = self.settings.progress_deadline_seconds
                self.end(self.answer(PhaseExit.HUNG, f"No progress for {seconds:.0f} s; the log says where it stood."))
            elif (outcome := self._find_end_between_tasks()) is not None:
                self.end(outcome)

    def _is_hung(self) -> bool:
        silent = time.monotonic() - self.progress.changed_at
        return self._is_hang_watched and silent > self.settings.progress_deadline_seconds

    def _find_end_between_tasks(self) -> Outcome | None:
        """How the pod ends where it has no task; once it is decided none is taken any more."""
        now = time.monotonic()
        if self._idle_since is None or self._is_busy or now - self._looked_at < LOOK_SECONDS:
            return None
        self._looked_at = now
        outcome = self._look()
        if outcome is None and self.progress.is_redis_away():
            self.stay()  # no task can come: that is no idleness
        elif outcome is None and now - self._idle_since >= self.settings.idle_seconds:
            outcome = self.answer(PhaseExit.IDLE, f"No task came within {self.settings.idle_seconds:.0f} s.")
        if outcome is None or not self._gate.acquire(timeout=1):
            return None
        if self._is_busy:
            self._gate.release()
            return None
        return outcome  # the gate stays shut

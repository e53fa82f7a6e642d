"""Runs a phase as a process of its own, which dies with this one, and passes on what it reports.

A phase's process prints Progress lines and ends with a code of `lifecycle.failures`. What becomes of its results is left to others.
"""

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llamero.spec.progress import Progress

GRACE_SECONDS = 60.0
KILL_GRACE_SECONDS = 5.0
HUNG_GRACE_SECONDS = 20.0
"""What hangs seldom ends well; but a training whose reports alone were held up may still write its checkpoint."""
POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
PROCESS_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin while they wait take the other processes' time on a machine of few cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What the processes started here get where the environment does not say otherwise."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: everything is to end."""


@dataclass(frozen=True)
class PhaseEnd:
    """How a phase's process ended: `hung` for want of progress, `overdue` when its time was up, `stopped` because it was told to."""

    returncode: int
    hung: bool = False
    overdue: bool = False
    stopped: bool = False


@contextlib.contextmanager
def interrupt_on_signals():  # type: ignore[no-untyped-def]
    """SIGINT and SIGTERM raise Interrupted in the main thread; a second one while cleaning up is not lost on the children."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_process(
    module: str, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start `python -m <module>` in a session of its own; stdout is piped, stderr goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=lambda: _die_with_parent(parent),
            env={**PROCESS_ENVIRONMENT, **os.environ, **(environment or {})},
        )


def _die_with_parent(parent: int) -> None:
    """SIGTERM when the parent ends, however it ends, so that a checkpoint is still written (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def stop_process(process: "subprocess.Popen[str]", grace_seconds: float = GRACE_SECONDS) -> int:
    """SIGTERM to the process group, SIGKILL after the grace; returns its code."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        pass
    except Interrupted:
        pass  # a second Ctrl-C: no more patience
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait(KILL_GRACE_SECONDS)
    return process.returncode


def _signal_group(process: "subprocess.Popen[str]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def run_phase(
    module: str,
    config: Path,
    log: Path,
    on_progress: Callable[[Progress], None],
    progress_deadline_seconds: float,
    deadline: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    grace_seconds: float = GRACE_SECONDS,
) -> PhaseEnd:
    """Run a phase's process to its end.

    One that reports nothing for `progress_deadline_seconds` is ended and counts as hung; `deadline` is a time of
    `time.monotonic()`. When `stop` says so the process is told to end and has `grace_seconds` for it. Raises Interrupted after
    the process has ended where this one was told to end by `interrupt_on_signals`.
    """
    process = start_process(module, [str(config)], log)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(process, lines), daemon=True)
    reader.start()
    last_event = time.monotonic()
    try:
        with log.open("a", encoding="utf-8") as other_output:
            while True:
                try:
                    line = lines.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    now = time.monotonic()
                    if stop():
                        return PhaseEnd(stop_process(process, grace_seconds), stopped=True)
                    if deadline is not None and now > deadline:
                        return PhaseEnd(stop_process(process), overdue=True)
                    if now - last_event > progress_deadline_seconds:
                        _dump_stacks(process)
                        return PhaseEnd(stop_process(process, min(grace_seconds, HUNG_GRACE_SECONDS)), hung=True)
                    continue
                if line is None:
                    break
                if stop():
                    return PhaseEnd(stop_process(process, grace_seconds), stopped=True)
                event = Progress.from_line(line)
                if event is None:
                    other_output.write(line + "\n")
                    continue
                last_event = time.monotonic()
                on_progress(event)
        return PhaseEnd(process.wait())
    finally:
        if process.poll() is None:
            stop_process(process)


def _dump_stacks(process: "subprocess.Popen[str]") -> None:
    """Ask the process for its threads' stacks (faulthandler on SIGUSR1) before it is ended, so that the log tells where it hung."""
    _signal_group(process, signal.SIGUSR1)
    time.sleep(1.0)


def _read_lines(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(None)

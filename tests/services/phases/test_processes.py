"""Phases as processes: what they report, how they end, and that they end with their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from llamero.phases.processes import run_phase
from llamero.spec.progress import Progress

PRELUDE = """
import faulthandler, signal, sys, time, os
sys.path[:0] = [{services!r}]
from llamero.spec.progress import Progress
faulthandler.register(signal.SIGUSR1)
def report(done):
    print(Progress("Training", "work", done, 3, "steps").to_line(), flush=True)
"""


@pytest.fixture
def phase(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Writes a module that stands for a phase's process and returns a function that runs it."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{repository / 'services'}")
    log = tmp_path / "log"
    events: list[Progress] = []

    def run(body: str, progress_deadline: float = 30, deadline: float | None = None):  # type: ignore[no-untyped-def]
        prelude = PRELUDE.format(services=str(repository / "services"))
        (tmp_path / "some_phase.py").write_text(prelude + textwrap.dedent(body))
        end = run_phase("some_phase", tmp_path / "config", log, events.append, progress_deadline, deadline)
        return end, events, log.read_text()

    return run


def test_progress_is_passed_on_and_other_output_goes_to_the_log(phase) -> None:  # type: ignore[no-untyped-def]
    end, events, log = phase('report(1); print("a library speaks"); report(3); print("trouble", file=sys.stderr)')
    assert end.returncode == 0
    assert [e.done for e in events] == [1, 3]
    assert "a library speaks" in log
    assert "trouble" in log


def test_the_exit_code_is_passed_on(phase) -> None:  # type: ignore[no-untyped-def]
    assert phase("sys.exit(12)")[0].returncode == 12
    assert phase("os.kill(os.getpid(), signal.SIGKILL)")[0].returncode == -9


def test_a_process_that_reports_nothing_for_too_long_is_ended_and_tells_where_it_stood(phase) -> None:  # type: ignore[no-untyped-def]
    end, _, log = phase("def hang():\n    time.sleep(60)\nreport(1); hang()", progress_deadline=1)
    assert end.hung
    assert "in hang" in log


def test_a_process_past_its_deadline_is_ended(phase) -> None:  # type: ignore[no-untyped-def]
    end, _, _ = phase("report(1)\nwhile True:\n    time.sleep(.1)", deadline=time.monotonic() + 1)
    assert end.overdue


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_parent_ends_its_phase_ends_with_it(
    tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    (tmp_path / "some_phase.py").write_text("import time\nwhile True: time.sleep(.1)\n")
    parent_code = textwrap.dedent(f"""
        from pathlib import Path
        from llamero.phases.processes import Interrupted, interrupt_on_signals, run_phase, start_process
        import llamero.phases.processes as processes
        start = processes.start_process
        def start_and_tell(*args):
            process = start(*args)
            print(process.pid, flush=True)
            return process
        processes.start_process = start_and_tell
        try:
            with interrupt_on_signals():
                run_phase("some_phase", Path("config"), Path({str(tmp_path / "log")!r}), print, 60)
        except Interrupted:
            raise SystemExit(130)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository / 'services'}"},
    )
    assert parent.stdout is not None
    try:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(number)
        parent.wait(10)
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running()
        assert parent.returncode == (-9 if number == signal.SIGKILL else 130)
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()

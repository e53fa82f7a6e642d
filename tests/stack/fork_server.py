"""Starts operator processes by fork from one that has imported everything, so that a suite can afford hundreds of starts.

What is started is a process of its own like any other: its environment, its log, its end by SIGKILL. Imports alone are shared, which
are most of what a start costs. Run as a module it is the server: JSON lines on standard input and output.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECONDS = 60


class ForkedProcess:
    """A process that the server started; of `subprocess.Popen` it has what a Daemon needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended_at: float | None = None
        """When its end was noticed, as of `time.monotonic`."""
        self._ended = threading.Event()

    def note_end(self, code: int) -> None:
        self.returncode, self.ended_at = code, time.monotonic()
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server, from the outside; a context manager. `module` is run as `python -m` would, in each fork."""

    def __init__(self, module: str = "llamero_operator") -> None:
        self._module = module
        self._lock = threading.Lock()
        self._started: dict[int, ForkedProcess] = {}
        self._answers: list[ForkedProcess] = []
        self._answered = threading.Condition()

    def __enter__(self) -> Self:
        paths = [str(p) for p in sys.path if p]
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="fork server", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()  # it ends, and what it started with it
        self._server.wait(START_SECONDS)
        self._reader.join(5)

    def spawn(self, environment: Mapping[str, str], log: Path, folder: Path) -> ForkedProcess:
        """A further process; its output is appended to the log. Raises RuntimeError where the server is gone."""
        request = json.dumps({"environment": dict(environment), "log": str(log), "folder": str(folder)})
        with self._lock, self._answered:
            assert self._server.stdin is not None
            self._server.stdin.write(request + "\n")
            self._server.stdin.flush()
            if not self._answered.wait_for(lambda: self._answers or self._server.poll() is not None, START_SECONDS):
                raise RuntimeError("the fork server does not answer")
            if not self._answers:
                raise RuntimeError(f"the fork server ended with {self._server.returncode}")
            return self._answers.pop()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            told = json.loads(line)
            with self._answered:
                if "code" in told:
                    self._started.pop(told["pid"]).note_end(told["code"])
                else:
                    self._started[told["pid"]] = ForkedProcess(told["pid"])
                    self._answers.append(self._started[told["pid"]])
                self._answered.notify_all()
        with self._answered:
            self._server.wait()
            for process in self._started.values():
                process.note_end(-signal.SIGKILL)
            self._answered.notify_all()


# -- the server itself ---------------------------------------------------------------------------------------------------------


def serve(module: str) -> None:
    """Forks for each line that comes; ends with its standard input, and its children with it."""
    import importlib

    importlib.import_module(f"{module}.main")
    if threading.active_count() != 1:
        raise RuntimeError(f"importing {module} started threads: {threading.enumerate()}")
    children: dict[int, int] = {}  # pidfd → pid
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, *children], [], [])
        for descriptor in ready:
            if descriptor in children:
                pid = children.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                _tell(out, pid=pid, code=os.waitstatus_to_exitcode(status))
        if 0 not in ready:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            for pid in children.values():
                os.kill(pid, signal.SIGKILL)
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become(module, request)
            children[os.pidfd_open(pid)] = pid
            _tell(out, pid=pid)


def _tell(out: Any, **fields: Any) -> None:
    out.write(json.dumps(fields) + "\n")
    out.flush()


def _become(module: str, request: Mapping[str, Any]) -> None:
    """The child: the server's files are closed, the environment is its own, and the module runs. Does not return."""
    code = 1
    try:
        _die_with_parent()
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        os.setsid()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        code = _run(module)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(module: str) -> int:
    import random
    import runpy

    from llamero_operator import faultpoints

    random.seed()
    # What is read from the environment when a module is imported is read again here.
    if os.environ.get(faultpoints.FAULT) or os.environ.get(faultpoints.FAULT_LOG):
        faultpoints.point = faultpoints.build_point(os.environ)
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    serve(sys.argv[1])

"""Servers as processes of their own, which die with this one. Phases' processes are `phases.processes`' business."""

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from llamero.phases.processes import start_process, stop_process


class Server:
    """A server's process, from its `ready URL` line to its end."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._module = module
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and return at once. In the main thread: the process dies with the thread that started it."""
        self._process = start_process(self._module, self._arguments, self.log)

    def wait_until_ready(self) -> None:
        """Blocks until it serves. Raises ServerError where it ends before that; the process is ended then."""
        assert self._process is not None and self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.startswith("ready "):
                    self.url = line.split()[1]
                    break
            else:
                raise ServerError(
                    f"The {self.name} ended with code {self._process.wait()} before it was ready: see {self.log}."
                )
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=_drain, args=(self._process,), daemon=True).start()

    def stop(self) -> None:
        """End it; one that has ended, or never ran, is no error."""
        if self._process is not None:
            stop_process(self._process, grace_seconds=10.0)

    def __enter__(self) -> "Server":
        self.start()
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else None


class ServerError(Exception):
    """A server that did not start or ended by itself; the message says which and where its log is."""


def _drain(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for _ in process.stdout:
        pass

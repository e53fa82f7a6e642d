"""Local server processes: free ports, start with a log, stop by id. Knows nothing of what the servers are."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Below the range from which Linux takes the ports of outgoing connections, so that none takes a port just found free.
PORTS = range(20_000, 32_000)
TAIL_LINES = 40


class StartError(RuntimeError):
    """A process did not come up; the message ends with the tail of its log."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at the moment."""
    for _ in range(200):
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {host} between {PORTS.start} and {PORTS.stop}")


def accepts_connections(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command, wrapped so that the kernel kills it when the thread that started it ends.

    `setpriv` rather than a `preexec_fn`: it execs the command under the same id, and no Python runs between fork and exec,
    which is slow and unsafe in a process with threads.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


class Daemon:
    """One server process with a log file; it can be started again after it ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = dict(environment) if environment is not None else None
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError before the first start."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts the process; its output is appended to the log."""
        if self.is_running:
            raise RuntimeError(f"{self.name} runs already")
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                dying_with_parent(self.command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def wait_ready(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `is_ready()`; raises StartError with the log's tail where the process ends or the time is over."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            if not self.is_running:
                code = self.process.returncode if self.process else None
                raise StartError(f"{self.name} ended with code {code} at its start:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready after {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.05)

    def stop(self, seconds: float = 10) -> int | None:
        """SIGTERM, then SIGKILL after `seconds`; returns the exit code (None where it never ran)."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: the process keeps its sockets and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The log's last lines."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

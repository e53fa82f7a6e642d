"""The operator as its own process, as a Deployment would start it: settings from a file, Redis from the environment."""

import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cluster.processes import Daemon, free_port

from stack.fork_server import ForkedProcess, ForkServer

READY_SECONDS = 60
FAST = {
    "statusIntervalSeconds": 0.2,
    "pollSeconds": 2,
    "resendSeconds": 5,
    "idleSeconds": 30,
    "unschedulableSeconds": 4,
    "graceSeconds": 15,
    "watchdogSeconds": 60,
    "hungMarginSeconds": 5,
}
"""Intervals for tests: the same behaviour, sooner."""


class ForkedDaemon(Daemon):
    """A Daemon whose process is forked by the server instead of executed."""

    def __init__(self, server: ForkServer, name: str, log: Path, environment: Mapping[str, str], folder: Path) -> None:
        super().__init__(name, [], log, environment, folder)
        self._server = server

    def start(self) -> None:
        if self.is_running:
            raise RuntimeError(f"{self.name} runs already")
        assert self.environment is not None
        assert self.folder is not None
        self.process = self._server.spawn(self.environment, self.log, self.folder)  # type: ignore[assignment]


class OperatorProcess:
    """One operator process; it can be killed and started again. `settings` are those of its YAML file.

    With a `fork_server` it is forked instead of executed, which saves the imports' seconds at each start.
    """

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        redis_url: str,
        settings: Mapping[str, Any],
        *,
        name: str = "operator",
        environment: Mapping[str, str] | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self.folder = folder
        self._fork_server = fork_server
        folder.mkdir(parents=True, exist_ok=True)
        self.health_port, self.metrics_port = free_port(), free_port()
        self.settings = {
            "intervals": FAST,
            **settings,
            "healthPort": self.health_port,
            "metricsPort": self.metrics_port,
        }
        self._file = folder / f"{name}-settings.yaml"
        self._file.write_text(yaml.safe_dump(self.settings))
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "KUBECONFIG": str(kubeconfig),
            "LLAMERO_SETTINGS": str(self._file),
            "LLAMERO_REDIS_URL": redis_url,
            "POD_NAMESPACE": "default",
            "POD_NAME": name,
            **(environment or {}),
        }
        self.log = folder / f"{name}.log"
        self._daemon = self._build({})

    def _build(self, more: Mapping[str, str]) -> Daemon:
        environment = {**self._environment, **more}
        if self._fork_server is not None:
            return ForkedDaemon(self._fork_server, "operator", self.log, environment, self.folder)
        command = [sys.executable, "-m", "llamero_operator"]
        return Daemon("operator", command, self.log, environment, self.folder)

    def start(self, wait: bool = True, **environment: str) -> "OperatorProcess":
        """Start it (again); with `wait`, return when /readyz answers. `environment` is of this start alone."""
        self._daemon = self._build(environment)
        self._daemon.start()
        if wait:
            self._daemon.wait_ready(self.is_ready, READY_SECONDS)
        return self

    @property
    def pid(self) -> int:
        return self._daemon.pid

    @property
    def is_running(self) -> bool:
        return self._daemon.is_running

    @property
    def returncode(self) -> int | None:
        process = self._daemon.process
        return process.poll() if process else None

    @property
    def ended_at(self) -> float | None:
        """When a forked one's end was noticed, as of `time.monotonic`; None while it runs, and for executed ones."""
        process = self._daemon.process
        return process.ended_at if isinstance(process, ForkedProcess) else None

    def is_ready(self) -> bool:
        try:
            return self.read("/readyz", self.health_port) is not None
        except OSError:
            return False

    def read(self, path: str, port: int) -> str:
        """The text at a path of its health or metrics port. Raises OSError where it does not answer with 200."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
            return str(response.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric that have these labels."""
        total = 0.0
        for line in self.read("/metrics", self.metrics_port).splitlines():
            found = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? ([-+.\deE]+|NaN|\+Inf)", line)
            if found and all(f'{k}="{v}"' in (found[1] or "") for k, v in labels.items()):
                total += float(found[2])
        return total

    def kill(self) -> None:
        """SIGKILL."""
        self._daemon.kill()

    def stop(self) -> int | None:
        """SIGTERM, and its exit code."""
        return self._daemon.stop(20)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_ended(self, seconds: float) -> int:
        """Its exit code, once it ended by itself. Raises subprocess.TimeoutExpired."""
        assert self._daemon.process is not None
        return self._daemon.process.wait(seconds)

    def tail(self, lines: int = 60) -> str:
        return self._daemon.tail(lines)


HttpError = urllib.error.URLError

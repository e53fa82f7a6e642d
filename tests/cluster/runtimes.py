"""What the node asks of whatever runs containers, and the runtime that runs none: containers answered by a callable."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.environment import Mounts

Object = dict[str, Any]

TERMINATED_BY_SIGTERM = 128 + 15
TERMINATED_BY_SIGKILL = 128 + 9
KILLED = "SIGKILL"
SIGNAL_WORDS = {9: KILLED, 15: "SIGTERM"}
MESSAGE_BYTES = 4096
NO_MOUNTS = Mounts(())


@dataclass(frozen=True)
class Exit:
    """How a container ended: `reason` overrides Completed/Error, `message` is its termination message."""

    code: int
    message: str = ""
    reason: str | None = None
    signal: int | None = None


@dataclass(frozen=True)
class Launch:
    """A container about to be started. `folder` is its own; where the runtime needs no files, environment and mounts are empty."""

    pod: Object
    container: Object
    container_id: str
    restart: int
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mounts = NO_MOUNTS
    node_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the node adds; mount paths are not replaced in them."""

    @property
    def log(self) -> Path:
        """Its output, one file a restart."""
        return self.folder / f"{self.restart}.log"


class LaunchError(Exception):
    """The container's process could not be started (kubelet: StartError, exit code 128)."""


class Running(Protocol):
    """A container that was started."""

    @property
    def pid(self) -> int | None: ...

    async def wait(self) -> Exit:
        """Its end; may be awaited by many."""
        ...

    def send(self, signal_number: int) -> None:
        """Sends a signal; nothing happens where it has ended."""
        ...

    def kill(self) -> None:
        """Ends it and everything it started."""
        ...

    async def execute(self, command: list[str], seconds: float) -> Exit:
        """Runs a command in the container (exec probes and hooks)."""
        ...


class Runtime(Protocol):
    """Runs containers. `needs_files`: whether volumes, environment and folders are made; `has_probes`: whether they are run."""

    needs_files: bool
    has_probes: bool

    async def start(self, launch: Launch) -> Running: ...


Script = Callable[[Object, Object], Awaitable[tuple[int, str]]]
"""(pod, container) → (exit code, termination message)."""


class SimulatedRuntime:
    """Containers that are a callable: `script(pod, container)` is awaited and returns exit code and termination message.

    No process, no file, no read of the API. Containers are ready at once; probes are not run. SIGTERM and SIGKILL cancel the
    callable; it may catch the cancellation of a SIGTERM and return a code of its own; that of a SIGKILL has KILLED as its argument and is
    to be let through. What it raises becomes exit code 1.
    """

    needs_files = False
    has_probes = False

    def __init__(self, script: Script) -> None:
        self.script = script

    async def start(self, launch: Launch) -> Running:
        return _Simulated(self.script(launch.pod, launch.container))


class _Simulated:
    pid = None

    def __init__(self, script: Awaitable[tuple[int, str]]) -> None:
        self._signal = 0
        self._task = asyncio.ensure_future(self._play(script))

    async def _play(self, script: Awaitable[tuple[int, str]]) -> Exit:
        try:
            code, message = await script
        except asyncio.CancelledError:
            signal_number = self._signal or 9
            return Exit(128 + signal_number, signal=signal_number)
        except Exception as error:
            return Exit(1, f"{type(error).__name__}: {error}")
        return Exit(code, message)

    async def wait(self) -> Exit:
        await asyncio.wait([self._task])
        # A task cancelled before its first step never ran `_play`.
        return Exit(128 + (self._signal or 9)) if self._task.cancelled() else self._task.result()

    def send(self, signal_number: int) -> None:
        self._signal = signal_number
        self._task.cancel(SIGNAL_WORDS.get(signal_number))

    def kill(self) -> None:
        self.send(9)

    async def execute(self, command: list[str], seconds: float) -> Exit:
        return Exit(0)

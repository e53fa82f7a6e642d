"""What the scenarios stand on: the control plane, a folder, the fork server, how long things may take; and stacks made from them."""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from stack.fork_server import ForkServer
from stack.protocol_worker import Script
from stack.stack import Stack

STEPS = 24
INTERVALS: dict[str, Any] = {
    # Progress alone is not written: what is counted and timed are changes that matter.
    "statusIntervalSeconds": 60,
    "pollSeconds": 1,
    "resendSeconds": 3,
    "idleSeconds": 30,
    "unschedulableSeconds": 60,
    "graceSeconds": 5,
    "watchdogSeconds": 60,
    "hungMarginSeconds": 30,
}


def build_script(**changes: Any) -> Script:
    """Work that is quick, and long enough to be met by a fault in each phase."""
    fields = {"steps": STEPS, "step_seconds": 0.04, "prepare_seconds": 0.3, "evaluate_seconds": 0.3, "save_every": 4}
    return Script(**{**fields, **changes})


@dataclass
class Arena:
    """`full` is `make chaos`; otherwise a fault is tried once, with short times."""

    plane: ControlPlane
    folder: Path
    fork_server: ForkServer
    full: bool = False
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self) -> int:
        """A number that was not given before."""
        with self._lock:
            return next(self._numbers)

    @contextlib.contextmanager
    def stack(
        self,
        script: Script | None = None,
        *,
        intervals: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Stack]:
        """A namespace with its own Redis, node, played pods and operator."""
        merged = {"intervals": {**INTERVALS, **(intervals or {})}, **(settings or {})}
        folder = self.folder / f"s{self.number()}"
        played = script or build_script()
        with Stack(
            self.plane, folder, script=played, settings=merged, fork_server=self.fork_server, **options
        ) as running:
            yield running

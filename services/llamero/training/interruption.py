"""SIGTERM and SIGINT: raised at once where nothing is lost by it, put off to the next safe point while a step is under way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llamero.training.failures import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Turns the signals into `Interrupted`. Install it in the main thread, once per process."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._is_deferred = False

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if not self._is_deferred:
            self.check()

    def check(self) -> None:
        """A safe point: raises Interrupted where a signal has come."""
        if self._signal is not None:
            raise Interrupted(f"{self._signal} came.")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal waits for the next `check()`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

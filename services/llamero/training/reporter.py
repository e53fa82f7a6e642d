"""Progress of a training on standard output, one JSON line an event, at most five a second."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from llamero.spec.progress import Progress
from llamero.spec.run import Phase

MIN_SECONDS_BETWEEN_LINES = 0.2
RATE_WINDOW_SECONDS = 10.0


class Reporter:
    """Writes `Progress` lines. Whoever reads them may go away: the training goes on without lines then."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stdout
        self._clock = clock
        self._last_line = float("-inf")
        self._window: deque[tuple[float, int]] = deque()

    def say(self, activity: str, message: str = "") -> None:
        """The beginning of an activity."""
        self._write(Progress(Phase.TRAINING.value, activity, message=message))

    def report_step(self, step: int, total: int, loss: float, learning_rate: float, tokens: int) -> None:
        """A finished optimiser step; the last one is always told, others where enough time went by."""
        now = self._clock()
        self._window.append((now, tokens))
        while self._window[0][0] < now - RATE_WINDOW_SECONDS and len(self._window) > 2:
            self._window.popleft()
        if step < total and now - self._last_line < MIN_SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        values: dict[str, Any] = {"step": step, "loss": round(loss, 6), "learningRate": float(f"{learning_rate:.6g}")}
        rate = self._tokens_per_second()
        if rate is not None:
            values["tokensPerSecond"] = round(rate, 1)
        self._write(Progress(Phase.TRAINING.value, "training", step, total, "steps", values=values))

    def _tokens_per_second(self) -> float | None:
        """The rate over the last seconds: tokens of the steps after the window's first, by the time since that one."""
        if len(self._window) < 2:
            return None
        span = self._window[-1][0] - self._window[0][0]
        tokens = sum(t for _, t in list(self._window)[1:])
        return tokens / span if span > 0 else None

    def _write(self, progress: Progress) -> None:
        try:
            self._stream.write(progress.to_line() + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # The stream itself goes on, into nothing: its flush at the process's end would otherwise change the exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

"""The queue of jobs to be looked at: one pass a key at a time, delayed adds, backoff after errors.

Like client-go's: a key that is added while its pass runs is looked at again afterwards, one that is added twice is looked at once.
It knows nothing of what a pass does.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")

BACKOFF_BASE_SECONDS = 0.5
BACKOFF_LIMIT_SECONDS = 60.0


class WorkQueue(Generic[Key]):
    """Keys waiting for a pass. Belongs to one event loop."""

    def __init__(
        self,
        base_seconds: float = BACKOFF_BASE_SECONDS,
        limit_seconds: float = BACKOFF_LIMIT_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base = base_seconds
        self._limit = limit_seconds
        self._jitter = jitter
        self._ready: deque[Key] = deque()
        self._waiting: dict[Key, float] = {}  # in `ready`, with the time since when
        self._running: set[Key] = set()
        self._again: set[Key] = set()  # added while its pass ran
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._arrived = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones do not count."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys whose time has not come."""
        return len(self._timers)

    @property
    def oldest_seconds(self) -> float:
        """How long the key at the head has waited for a worker; 0 where none waits."""
        return time.monotonic() - self._waiting[self._ready[0]] if self._ready else 0.0

    def add(self, key: Key) -> None:
        """The key is to be looked at, as soon as a worker is free."""
        if self._closed or key in self._waiting:
            return
        if key in self._running:
            self._again.add(key)
            return
        self._ready.append(key)
        self._waiting[key] = time.monotonic()
        self._arrived.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """As `add`, after a time; the earliest of several counts."""
        if self._closed:
            return
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._fire, key)

    def add_failed(self, key: Key) -> float:
        """The key's pass failed: again after a delay that doubles with each failure, up to the limit. Returns the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(self._limit, self._base * 2.0 ** min(failures, 30)) * (0.5 + 0.5 * self._jitter())
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: Key) -> None:
        """The key's pass went well: its failures are forgotten."""
        self._failures.pop(key, None)

    def drop(self, key: Key) -> None:
        """The key is gone from the world: nothing of it is kept."""
        self._failures.pop(key, None)
        self._again.discard(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def get(self) -> Key | None:
        """The next key, whose pass runs until `done`; None once the queue is closed."""
        while not self._ready:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        key = self._ready.popleft()
        del self._waiting[key]
        self._running.add(key)
        # The pass at hand sees all there is, and says itself when it wants to be called again.
        if timer := self._timers.pop(key, None):
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        """The key's pass has ended."""
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """No more keys: those who wait get None."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._waiting.clear()
        self._arrived.set()

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

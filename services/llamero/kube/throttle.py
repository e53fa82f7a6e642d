"""How fast a client may ask: a token bucket, a limit of requests under way, and pauses that the server asked for.

Knows nothing of HTTP. The clock and the sleep are passed in, so that it can be tested without waiting.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]


class TokenBucket:
    """`qps` tokens a second, at most `burst` in store; whoever asks is told how long to wait, in order of asking."""

    def __init__(self, qps: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._qps = qps
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def reserve(self) -> float:
        """Takes a token, if need be of the future, and returns the seconds until it is there."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._qps)


class Throttle:
    """Lets requests through at the bucket's pace, at most `max_concurrent` at once, and none during a pause."""

    def __init__(
        self,
        qps: float,
        burst: int,
        max_concurrent: int,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._bucket = TokenBucket(qps, burst, clock)
        self._slots = asyncio.Semaphore(max_concurrent)
        self._clock = clock
        self._sleep = sleep
        self._paused_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Held while a request is under way."""
        if wait := self._bucket.reserve():
            await self._sleep(wait)
        while (rest := self._paused_until - self._clock()) > 0:
            # Those who waited do not all come back in the same moment.
            await self._sleep(rest * random.uniform(1.0, 1.2))
        async with self._slots:
            yield

    def pause(self, seconds: float) -> None:
        """No request starts for so long: the server asked for it (429 or 503 with Retry-After)."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


def backoff_seconds(failures: int, base: float = 0.25, limit: float = 8.0) -> float:
    """Seconds before the next try after so many failures: doubling up to `limit`, with jitter of a half."""
    return min(limit, base * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)

"""Which backends failed just now and are asked last for a while."""

import time
from collections.abc import Callable

from llamero.chat.routing import Ask
from llamero.chat.settings import REST_SECONDS

Clock = Callable[[], float]


class Resting:
    """Backends that could not be reached or said that they are not ready, and adapters that one said it has not."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str | Ask, float] = {}

    def put(self, what: str | Ask) -> None:
        """A backend (its URL) or one adapter of it failed: ask others first for REST_SECONDS."""
        now = self._clock()
        self._until = {k: until for k, until in self._until.items() if until > now}
        self._until[what] = now + REST_SECONDS

    def wake(self, ask: Ask) -> None:
        """It answered."""
        if self._until:
            self._until.pop(ask, None)
            self._until.pop(ask[0], None)

    def holds(self, ask: Ask) -> bool:
        """Whether others are to be asked first."""
        if not self._until:
            return False
        now = self._clock()
        return self._until.get(ask, 0.0) > now or self._until.get(ask[0], 0.0) > now

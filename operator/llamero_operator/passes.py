"""Workers that take keys from a work queue and run a pass a key, and what follows from how a pass ends.

What a pass does is the reconciler's business (jobs: `handlers`, servers: `serving.reconciler`).
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from prometheus_client import Histogram

from llamero.kube import Away, Conflict, KubeError
from llamero_operator.metrics import Stopwatch
from llamero_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class Passes(ABC):
    """Looks at keys, one pass a key at a time."""

    def __init__(self, queue: WorkQueue[Key], seconds: Histogram) -> None:
        self.queue = queue
        self._seconds = seconds
        self._gate = asyncio.Event()

    def open_gate(self) -> None:
        """Everything that exists has been seen: passes may begin."""
        self._gate.set()

    @property
    def is_open(self) -> bool:
        """Whether passes may begin."""
        return self._gate.is_set()

    async def work(self) -> None:
        """Takes keys from the queue until it is closed."""
        await self._gate.wait()
        while (key := await self.queue.get()) is not None:
            with self.about(key):
                try:
                    await self._pass(key)
                finally:
                    self.queue.done(key)
                    self.ended()

    async def _pass(self, key: Key) -> None:
        watch = Stopwatch()
        outcome = "error"
        try:
            wake_after = await self.reconcile(key)
            outcome = "done"
            self.queue.succeeded(key)
            if wake_after is not None:
                self.queue.add_after(key, wake_after)
        except Conflict as error:
            outcome = "conflict"
            logger.debug("it has changed meanwhile: %s", error)
            await self.refresh(key)
        except Away as error:
            outcome = "away"
            wait = self.queue.add_failed(key)
            logger.warning("%s: next pass in %.1f s", error, wait)
        except Exception as error:
            wait = self.queue.add_failed(key)
            if isinstance(error, KubeError):
                logger.error("the pass failed, next one in %.1f s: %s", wait, error)
            else:
                logger.exception("the pass failed, next one in %.1f s", wait)
        self._seconds.labels(outcome).observe(watch.seconds)

    @abstractmethod
    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns the seconds to the next one where nothing happens before. Raises KubeError."""

    @abstractmethod
    async def refresh(self, key: Key) -> None:
        """Reads anew what a write was refused for as outdated (the watch may lag behind), and adds the key again."""

    @abstractmethod
    def about(self, key: Key) -> AbstractContextManager[None]:
        """What log records of the pass say they are about."""

    def ended(self) -> None:
        """A pass has ended, however."""
        return

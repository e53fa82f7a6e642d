"""Leader election by a Lease, for two replicas of which one works.

`kubernetes.aio`'s election raises when the API server is away and lets its task run on after the lease is lost; here every failure
counts as a failed try until the deadline, and a leader that could not renew ends its process at once: there is never a second
writer.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiException, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from llamero.kube import Kube
from llamero_operator.settings import LeaseSettings

logger = logging.getLogger(__name__)

EXIT_LEASE_LOST = 21
TRY_SECONDS = 5.0
"""A request for the Lease is given up after so long: a slow answer must not eat the deadline."""

Failures = (aiohttp.ClientError, OSError, TimeoutError, ApiException)


def clock() -> float:
    """Seconds that go on while the machine sleeps: a leader that was suspended must notice."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def end_process(code: int) -> None:
    """Ends the process at once: nothing is written any more."""
    logging.shutdown()
    os._exit(code)


class PatientLock(LeaseLock):
    """A LeaseLock whose failures are failed tries, whatever they are, and that remembers when it was last renewed."""

    def __init__(self, name: str, namespace: str, identity: str, api_client: Any) -> None:
        super().__init__(name, namespace, identity, api_client)
        self.renewed_at: float | None = None

    async def get(self, name: str, namespace: str) -> Any:
        try:
            async with asyncio.timeout(TRY_SECONDS):
                return await super().get(name, namespace)
        except Failures as error:
            return False, ApiException(status=0, reason=str(error) or type(error).__name__)

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        # Not the library's own: its `pretty=True` is refused by the library's own check of types (37.0.1).
        body = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        return await self._write(self.api_instance.create_namespaced_lease(namespace, body))

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._write(super().update(name, namespace, updated_record))

    async def _write(self, request: Any) -> bool:
        # Counted from before the request: the server's clock may have started then.
        began = clock()
        try:
            async with asyncio.timeout(TRY_SECONDS):
                done = (await request) is not False
        except Failures as error:
            logger.warning("the Lease could not be written: %s", error or type(error).__name__)
            return False
        if done:
            self.renewed_at = began
        return done


class Lease:
    """The right to work. `hold` waits for it; from then on it is renewed, or the process ends."""

    def __init__(
        self,
        kube: Kube,
        settings: LeaseSettings,
        identity: str | None = None,
        on_lost: Callable[[int], None] = end_process,
    ) -> None:
        self.identity = identity or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._settings = settings
        self._namespace = settings.namespace or kube.namespace
        self._lock = PatientLock(settings.name, self._namespace, self.identity, kube.api)
        self._on_lost = on_lost
        self._held = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether it was renewed recently enough to write."""
        renewed = self._lock.renewed_at
        return renewed is not None and clock() - renewed < self._settings.duration_seconds

    async def hold(self) -> None:
        """Returns once this process leads."""
        self._task = asyncio.create_task(self._elect(), name="lease")
        self._task.add_done_callback(self._see_end)
        held = asyncio.create_task(self._held.wait())
        done, _ = await asyncio.wait({held, self._task}, return_when=asyncio.FIRST_COMPLETED)
        held.cancel()
        if self._task in done:
            self._task.result()

    def _see_end(self, task: asyncio.Task[None]) -> None:
        """An election that fails by an error of its own renews nothing any more."""
        if not task.cancelled() and task.exception() is not None and self._held.is_set():
            logger.error("the election failed: ending the process: %r", task.exception())
            self._on_lost(EXIT_LEASE_LOST)

    def fence(self) -> None:
        """Called before each write: ends the process where the lease has run out, as after a pause of the whole machine."""
        if not self.is_held:
            logger.error("the lease has run out before a write: ending the process, so that there is one writer")
            self._on_lost(EXIT_LEASE_LOST)

    async def release(self) -> None:
        """Gives the lease back, so that the other replica need not wait for it to run out. Call it after the last write."""
        if self._task is not None:
            self._task.cancel()
        if not self.is_held:
            return
        try:
            async with asyncio.timeout(TRY_SECONDS):
                found = await self._lock.api_instance.read_namespaced_lease(self._settings.name, self._namespace)
                if found.spec.holder_identity == self.identity:
                    found.spec.holder_identity = ""
                    await self._lock.api_instance.replace_namespaced_lease(self._settings.name, self._namespace, found)
        except Failures as error:
            logger.warning("the Lease could not be given back: %s", error or type(error).__name__)
        self._lock.renewed_at = None

    async def _elect(self) -> None:
        async def lead() -> None:
            logger.info("this process leads as %s", self.identity)
            self._held.set()

        async def lose() -> None:
            logger.error("the lease could not be renewed in time: ending the process, so that there is one writer")
            self._on_lost(EXIT_LEASE_LOST)

        config = Config(
            self._lock,
            lease_duration=self._settings.duration_seconds,
            renew_deadline=self._settings.renew_seconds,
            retry_period=self._settings.retry_seconds,
            onstarted_leading=lead,
            onstopped_leading=lose,
        )
        await LeaderElection(config).run()

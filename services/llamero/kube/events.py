"""Events for people, few of them: the same one again only raises a count, and an object that chatters is cut short.

An Event is a courtesy: that one could not be written never fails anything.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llamero.kube import objects
from llamero.kube.client import Kube
from llamero.kube.errors import Conflict, KubeError, NotFound
from llamero.kube.objects import EVENTS

logger = logging.getLogger(__name__)

REPEAT_SECONDS = 60.0
"""The same Event again within this time is only counted."""
BURST = 25
REFILL_SECONDS = 120.0
"""An object has so many Events at once, and one more each so many seconds, as client-go's spam filter does."""
MAX_MESSAGE = 1000
MAX_KNOWN = 10_000


@dataclass
class _Told:
    name: str
    count: int
    at: float
    written: bool = False


@dataclass
class _Allowance:
    tokens: float
    at: float


class EventRecorder:
    """Writes Events about objects. Names derive from what is said, so that a restart does not say it twice."""

    def __init__(self, kube: Kube, component: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._component = component
        self._clock = clock
        self._told: dict[str, _Told] = {}
        self._allowances: dict[str, _Allowance] = {}

    async def record(self, about: Mapping[str, Any], reason: str, message: str, warning: bool = False) -> None:
        """Says it about the object (with apiVersion, kind and metadata)."""
        metadata = about["metadata"]
        message = message[:MAX_MESSAGE]
        key = hashlib.sha256("\0".join([metadata["uid"], reason, message]).encode()).hexdigest()[:16]
        now = self._clock()
        told = self._told.setdefault(key, _Told(f"{metadata['name'][:200]}.{key}", 0, 0.0))
        told.count += 1
        if (told.written and now - told.at < REPEAT_SECONDS) or not self._allow(metadata["uid"], now):
            return
        told.at = now
        self._forget_old()
        try:
            await self._write(about, told, reason, message, warning)
            told.written = True
        except KubeError as error:
            logger.warning("an Event could not be written: %s", error)

    async def _write(self, about: Mapping[str, Any], told: _Told, reason: str, message: str, warning: bool) -> None:
        metadata = about["metadata"]
        namespace = metadata["namespace"]
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if told.written:
            try:
                await objects.patch(
                    self._kube, EVENTS, namespace, told.name, {"count": told.count, "lastTimestamp": when}, seconds=10
                )
                return
            except NotFound:
                pass  # its time to live has passed
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": told.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "reason": reason,
            "message": message,
            "type": "Warning" if warning else "Normal",
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._component,
            "firstTimestamp": when,
            "lastTimestamp": when,
            "count": told.count,
        }
        try:
            await objects.create(self._kube, EVENTS, namespace, event)
        except Conflict:
            return  # said before a restart

    def _allow(self, uid: str, now: float) -> bool:
        allowance = self._allowances.setdefault(uid, _Allowance(BURST, now))
        allowance.tokens = min(BURST, allowance.tokens + (now - allowance.at) / REFILL_SECONDS)
        allowance.at = now
        if allowance.tokens < 1:
            return False
        allowance.tokens -= 1
        return True

    def _forget_old(self) -> None:
        while len(self._told) > MAX_KNOWN:
            self._told.pop(next(iter(self._told)))
        while len(self._allowances) > MAX_KNOWN:
            self._allowances.pop(next(iter(self._allowances)))

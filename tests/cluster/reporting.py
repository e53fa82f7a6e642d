"""What a node writes about one pod: its status, as often as it changes and no more, and events of type Warning."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from cluster.api import ApiError, AsyncApi, path_of

Object = dict[str, Any]
LOG = logging.getLogger("cluster.node")

RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)
UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)
# What happens within so many steps of the event loop is one write: a simulated pod that ends at once costs one.
STEPS_OF_ONE_WRITE = 10
MESSAGE_CHARACTERS = 1000


def now_text() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Reporter:
    """Writes what `status()` returns whenever `changed()` was called, while the node is `present`, until the object is gone."""

    def __init__(self, pod: Object, api: AsyncApi, present: asyncio.Event, status: Callable[[], Object]) -> None:
        self.is_gone = False
        self._metadata = pod["metadata"]
        self._node: str = pod["spec"].get("nodeName", "")
        self._path = path_of("v1", "Pod", self._metadata["namespace"], self._metadata["name"])
        self._api = api
        self._present = present
        self._status = status
        self._dirty = asyncio.Event()
        self._tried = asyncio.Event()
        self._written: Object | None = None
        self._is_writing = False

    def changed(self) -> None:
        """The status may be another now."""
        self._dirty.set()

    def forget(self) -> None:
        """The object is gone: nothing is written any more."""
        self.is_gone = True
        self._dirty.set()
        self._tried.set()

    async def flush(self) -> None:
        """Waits until the status of now was written, or can't be."""
        while self._is_writing and not self.is_gone and (self._dirty.is_set() or self._written != self._status()):
            self._tried.clear()
            self._dirty.set()
            await self._tried.wait()

    async def write(self) -> None:
        """Writes until cancelled or until the object is gone."""
        self._is_writing = True
        attempt = 0
        while True:
            await self._dirty.wait()
            await self._present.wait()
            for _ in range(STEPS_OF_ONE_WRITE):
                await asyncio.sleep(0)
            self._dirty.clear()
            if self.is_gone:
                return
            if await self._write_once():
                attempt = 0
            else:
                await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
                self._dirty.set()
            self._tried.set()

    async def _write_once(self) -> bool:
        """Whether the status stands as it should, or never can."""
        status = self._status()
        if status == self._written:
            return True
        try:
            await self._api.patch(
                self._path + "/status", {"metadata": {"uid": self._metadata["uid"]}, "status": status}
            )
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and "UID" in str(error)):
                self.forget()
                return True
            LOG.info("status of %s: %s; trying again", self._path, error)
            return False
        except UNREACHABLE:
            return False
        self._written = status
        return True

    async def warn(self, reason: str, message: str) -> None:
        """Writes an Event of type Warning; what can't be written is lost."""
        if not self._present.is_set():
            return
        namespace, name = self._metadata["namespace"], self._metadata["name"]
        stamp = now_text()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{name[:40]}.", "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": namespace,
                "name": name,
                "uid": self._metadata["uid"],
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:MESSAGE_CHARACTERS],
            "source": {"component": "kubelet", "host": self._node},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        with contextlib.suppress(ApiError, *UNREACHABLE):
            await self._api.create(path_of("v1", "Event", namespace), event)

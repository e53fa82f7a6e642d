"""Brings the routes of a cluster's ConfigMap into the table, as the API server tells of each change.

Knows the watch protocol (list, then watch from there; 410 means list again) and patience with an API server that is away. What
the routes mean is left to others. While the ConfigMap is away, gone or broken, the last good routes stay.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from llamero.chat.settings import SILENT_WATCH_SECONDS, WATCH_SECONDS, ConfigMapName
from llamero.chat.table import RouteTable
from llamero.kube import Kube, KubeError, connect
from llamero.kube.objects import CONFIG_MAPS
from llamero.kube.throttle import backoff_seconds
from llamero.spec import names

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 5.0
EXPIRED = 410


class _Expired(Exception):
    """The API server's history no longer reaches back to where the watch is to go on: list again."""


class RoutesConfigMap:
    """Follows one ConfigMap. Needs get, list and watch on that name alone: every request carries its name as a field selector."""

    def __init__(self, name: ConfigMapName, table: RouteTable) -> None:
        self._name = name
        self._where = f"ConfigMap {name.namespace}/{name.name}"
        self._table = table
        self._path = CONFIG_MAPS.path(name.namespace)
        self._selector = {"fieldSelector": f"metadata.name={name.name}"}
        self._version = ""
        self._failures = 0

    async def watch(self) -> None:
        """Follow it for ever."""
        while True:
            try:
                async with await connect() as kube:
                    while True:
                        await self._follow(kube)
                        self._failures = 0
            except _Expired:
                self._version = ""
            except (KubeError, OSError, ValueError) as error:
                log.warning("the watch of %s broke off, the routes stay as they were: %s", self._where, error)
                # What happened meanwhile is learnt by a new list, by a new connection: the server may be another, with another
                # history, and credentials may have been mounted anew.
                self._version = ""
                await asyncio.sleep(backoff_seconds(self._failures, limit=MAX_BACKOFF_SECONDS))
                self._failures += 1

    async def _follow(self, kube: Kube) -> None:
        """List where needed, then watch until the watch ends."""
        if not self._version:
            await self._list(kube)
        await self._watch(kube)

    async def _list(self, kube: Kube) -> None:
        answer = await kube.request(
            "GET", self._path, query=self._selector, verb="list", kind=CONFIG_MAPS.kind, is_retried=False
        )
        items = answer.get("items") or []
        for item in items:
            self._take(item)
        if not items:
            log.warning("%s does not exist%s", self._where, "" if self._table.is_read else ": waiting for it")
        self._version = str(answer["metadata"]["resourceVersion"])

    async def _watch(self, kube: Kube) -> None:
        loop = asyncio.get_running_loop()
        query = {
            **self._selector,
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        # The server ends the watch by itself before this: one that outlives it hangs on a connection that is no more.
        try:
            async with (
                asyncio.timeout(SILENT_WATCH_SECONDS),
                kube.stream(self._path, query=query, verb="watch", kind=CONFIG_MAPS.kind) as lines,
            ):
                began, seen = loop.time(), 0
                async for line in lines:
                    if line.strip():
                        self._see(json.loads(line))
                        seen += 1
                if not seen and loop.time() - began < 1:
                    await asyncio.sleep(1)  # a proxy that ends watches at once is not asked without a pause
        except TimeoutError:
            log.warning("the watch of %s fell silent and is opened anew", self._where)
            self._version = ""
        except KubeError as error:
            if getattr(error, "status", 0) == EXPIRED:
                raise _Expired from None
            raise

    def _see(self, event: Mapping[str, Any]) -> None:
        kind, item = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            if item.get("code") == EXPIRED:
                raise _Expired
            raise ValueError(
                f"the API server ended it: {item.get('message') or item.get('reason') or 'no reason given'}"
            )
        if kind in ("ADDED", "MODIFIED"):
            self._take(item)
        elif kind == "DELETED":
            log.warning("%s was deleted: the routes stay as they were", self._where)
        self._version = str((item.get("metadata") or {}).get("resourceVersion") or self._version)

    def _take(self, item: Mapping[str, Any]) -> None:
        text = (item.get("data") or {}).get(names.ROUTES_KEY)
        if not isinstance(text, str):
            log.warning("%s has no key %s: the routes stay as they were", self._where, names.ROUTES_KEY)
            return
        self._table.put_json(text, self._where)

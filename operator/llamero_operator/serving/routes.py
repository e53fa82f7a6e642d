"""The one writer of the routes (ConfigMap `llamero-routes`): all servers' parts in one table, written whole.

A part stays as it was until its server says something else or is gone, also over a restart: chat services never see a table that lacks
what a restarted operator has not looked at yet. What a part may say is decided in `lifecycle.serving`; here a public name belongs to
the server that has it first.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from llamero.kube import Conflict, Kube, NotFound, objects
from llamero.kube.client import Object
from llamero.kube.objects import CONFIG_MAPS
from llamero.kube.servers import observe_config_map
from llamero.lifecycle.serving.world import ServerRoutes
from llamero.spec import names
from llamero.spec.routes import Route, Routes
from llamero_operator.observe import parse_time

logger = logging.getLogger(__name__)

WRITTEN_ANNOTATION = f"{names.GROUP}/written-at"
DIGEST_DIGITS = 16
TRIES = 5
PATIENCE_SECONDS = 60.0
"""Where no table was found at the start, servers that have had no pass yet are waited for so long before one is written."""


def combine(parts: Mapping[str, ServerRoutes]) -> Routes:
    """The table of all parts, with its revision. The same parts give the same table."""
    servers = {key: list(part.backends) for key, part in sorted(parts.items()) if part.backends or part.routes}
    routes = sorted((route for part in parts.values() for route in part.routes), key=lambda route: route.model)
    table = Routes(servers=servers, routes=routes)
    return table.model_copy(update={"revision": digest(table)})


def digest(table: Routes) -> str:
    """The revision of a table: a digest of all but the revision."""
    said = table.model_copy(update={"revision": ""}).to_json_dict()
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def split(table: Routes) -> dict[str, ServerRoutes]:
    """The table's parts by server."""
    routes: dict[str, list[Route]] = {}
    for route in table.routes:
        routes.setdefault(route.server, []).append(route)
    keys = {*table.servers, *routes}
    return {key: ServerRoutes(tuple(table.servers.get(key, ())), tuple(routes.get(key, ()))) for key in sorted(keys)}


class RoutesWriter:
    """Belongs to one event loop. `load` comes first, then `keep`, then `put` and `drop`."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._now = now
        self._parts: dict[str, ServerRoutes] = {}
        self._awaited: set[str] = set()  # servers without a pass so far, where no table was found
        self._began = now()
        self._written: Routes | None = None
        self._written_parts: dict[str, ServerRoutes] = {}
        self._written_at: datetime | None = None
        self._since: dict[str, datetime] = {}  # when what the table says of a server last changed
        self._dirty = True  # whether the parts may say something else than the table that was last written
        self._found: Object | None = None  # the ConfigMap as it was last read or written
        self._lock = asyncio.Lock()

    # Reading

    @property
    def revision(self) -> str:
        """Of the table that was last written or found."""
        return self._written.revision if self._written is not None else ""

    @property
    def age_seconds(self) -> float | None:
        """Since the table was last written; None where there is none."""
        return None if self._written_at is None else (self._now() - self._written_at).total_seconds()

    def part(self, key: str) -> ServerRoutes:
        """What the table that was last written says of a server."""
        return self._written_parts.get(key, ServerRoutes())

    def part_age(self, key: str) -> float | None:
        """Seconds since what it says of the server last changed; None where it says nothing."""
        since = self._since.get(key)
        return None if since is None else (self._now() - since).total_seconds()

    def owners(self) -> dict[str, str]:
        """Public names and the servers that have them."""
        return {route.model: key for key, part in self._parts.items() for route in part.routes}

    # Writing

    async def load(self) -> None:
        """Reads the table that is there. Raises KubeError where that can't be told."""
        found = await observe_config_map(self._kube, self._namespace, names.ROUTES_NAME)
        self._found = found
        table = _read(found) if found is not None else None
        self._began = self._now()
        if table is None:
            return
        annotations = (found or {})["metadata"].get("annotations") or {}
        self._take(table, parse_time(annotations.get(WRITTEN_ANNOTATION)) or self._now())
        self._parts = dict(self._written_parts)

    def keep(self, servers: Iterable[str]) -> None:
        """These are all servers there are: parts of others are dropped with the next write."""
        known = set(servers)
        for key in [key for key in self._parts if key not in known]:
            logger.info("the routes of %s are dropped: there is no such ModelServer", key)
            del self._parts[key]
            self._dirty = True
        self._awaited = known if self._written is None else set()

    async def put(self, key: str, routes: ServerRoutes) -> dict[str, str]:
        """What the table is to say of a server; returns when it does. Raises KubeError.

        Returns the public names that it can't have, with the server that has each.
        """
        taken = {model: owner for model, owner in self.owners().items() if owner != key}
        refused = {route.model: taken[route.model] for route in routes.routes if route.model in taken}
        if refused:
            routes = ServerRoutes(routes.backends, tuple(r for r in routes.routes if r.model not in refused))
        self._awaited.discard(key)
        if self._parts.get(key) != routes:
            self._parts[key] = routes
            self._dirty = True
        await self.write()
        return refused

    async def drop(self, key: str) -> None:
        """The server is gone. Raises KubeError."""
        self._awaited.discard(key)
        if self._parts.pop(key, None) is not None:
            self._dirty = True
        await self.write()

    async def write(self) -> None:
        """Writes the table where it differs from the one that was last written. Raises KubeError."""
        if not (self._dirty or self._lock.locked()) or self._must_wait():
            return
        async with self._lock:  # those who waited find their part in the table that the one before them wrote
            for _ in range(TRIES):
                if not self._dirty:
                    return
                if await self._try_write():
                    return
        raise Conflict(f"the ConfigMap {self._namespace}/{names.ROUTES_NAME} was written by others again and again")

    async def check(self) -> None:
        """Reads the ConfigMap again and mends what someone else made of it. Raises KubeError."""
        async with self._lock:
            self._found = await observe_config_map(self._kube, self._namespace, names.ROUTES_NAME)
            there = _read(self._found) if self._found is not None else None
            if there == self._written:
                return
            logger.warning(
                "the ConfigMap %s/%s was changed by others: it is written anew", self._namespace, names.ROUTES_NAME
            )
            if self._written is not None:
                await self._write_table(self._written)

    def _must_wait(self) -> bool:
        """Whether a table that is written now would lack what a server has not said yet."""
        if self._written is not None or not self._awaited:
            return False
        if (self._now() - self._began).total_seconds() < PATIENCE_SECONDS:
            return True
        logger.warning("the routes are written without %s, whose passes fail", ", ".join(sorted(self._awaited)))
        self._awaited.clear()
        return False

    async def _try_write(self) -> bool:
        """Whether the table is as the parts say; else the ConfigMap was read anew."""
        self._dirty = False  # before anything is awaited: a part that changes meanwhile makes it true again
        table = combine(self._parts)
        if self._written is not None and table.revision == self._written.revision:
            return True
        is_written = False
        try:
            is_written = await self._write_table(table)
        finally:
            self._dirty = self._dirty or not is_written
        return is_written

    async def _write_table(self, table: Routes) -> bool:
        """Whether it is written; else the ConfigMap was read anew."""
        now = self._now()
        manifest = _build_config_map(self._namespace, table, now)
        try:
            if self._found is None:
                self._found = await objects.create(self._kube, CONFIG_MAPS, self._namespace, manifest)
            else:
                version = self._found["metadata"]["resourceVersion"]
                manifest["metadata"]["resourceVersion"] = version
                self._found = await objects.replace(self._kube, CONFIG_MAPS, manifest)
        except (Conflict, NotFound):
            self._found = await observe_config_map(self._kube, self._namespace, names.ROUTES_NAME)
            return False
        self._take(table, now)
        logger.info("wrote the routes, revision %s", table.revision)
        return True

    def _take(self, table: Routes, at: datetime) -> None:
        before, after = self._written_parts, split(table)
        for key in {*before, *after}:
            if before.get(key) != after.get(key):
                self._since[key] = at
        self._written, self._written_parts, self._written_at = table, after, at


def _read(found: Object) -> Routes | None:
    text = (found.get("data") or {}).get(names.ROUTES_KEY)
    try:
        return Routes.model_validate_json(text) if text else None
    except ValidationError as error:
        logger.error("the routes that are there can't be read, and are written anew: %s", error)
        return None


def _build_config_map(namespace: str, table: Routes, now: datetime) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.ROUTES_NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "llamero", "app.kubernetes.io/managed-by": names.FIELD_MANAGER},
            "annotations": {WRITTEN_ANNOTATION: now.isoformat()},
        },
        "data": {names.ROUTES_KEY: json.dumps(table.to_json_dict(), sort_keys=True)},
    }

"""The routes in force, and the file that they are read from on a laptop. A broken or absent source leaves them as they are.

On a cluster they come from a ConfigMap: `configmap.py`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from llamero.spec.routes import Routes

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
Listener = Callable[[Routes], None]


class RouteTable:
    """The routes of the moment. Whoever chooses a backend looks here anew, so that nothing starts by older ones."""

    def __init__(self) -> None:
        self.routes = Routes()
        self.is_read = False
        self.loaded_at = 0
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with all routes that come."""
        self._listeners.append(listener)

    def put(self, routes: Routes) -> None:
        """These routes are in force from now on."""
        is_news = not self.is_read or routes != self.routes
        self.routes, self.is_read = routes, True
        if not is_news:
            return
        self.loaded_at = int(time.time())
        for listener in self._listeners:
            listener(routes)
        log.info("routes %s: %s", routes.revision or "-", ", ".join(r.model for r in routes.routes) or "none")

    def put_json(self, text: bytes | str, where: str) -> None:
        """Put routes that are read from `where`; broken ones change nothing but the log."""
        try:
            routes = Routes.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(str(p) for p in first["loc"])
            log.warning("%s is broken (%s %s): the routes stay as they were", where, at, first["msg"])
            return
        self.put(routes)


class RoutesFile:
    """Reads a file into a table, again whenever it changes."""

    def __init__(self, path: Path, table: RouteTable) -> None:
        self._path = path
        self._table = table
        self._seen: Stamp | None = None

    def refresh(self) -> None:
        """Read the file if it has changed. A file that can't be read changes nothing but the log."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            text = self._path.read_bytes()
        except OSError as error:
            log.warning("%s can't be read (%s): the routes stay as they were", self._path, error.strerror)
            return
        self._table.put_json(text, str(self._path))

    async def watch(self, interval_seconds: float) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            self.refresh()

    def _stamp(self) -> Stamp | None:
        try:
            told = self._path.stat()
        except OSError as error:
            if self._seen is not None:
                log.warning("%s is gone (%s): the routes stay as they were", self._path, error.strerror)
                self._seen = None
            return None
        return told.st_mtime_ns, told.st_size, told.st_ino

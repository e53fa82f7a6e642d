"""The routes file in memory: read again when it changes, and kept as it was while the file is broken."""

import asyncio
import logging
from pathlib import Path

from pydantic import ValidationError

from llamero.spec.routes import Routes

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


class RouteTable:
    """The routes of the moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Stamp | None = None
        self.routes = Routes()
        self.loaded_at = 0

    def refresh(self) -> None:
        """Read the file if it has changed. A file that can't be read changes nothing but the log."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.routes = Routes.model_validate_json(self._path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(p) for p in first["loc"])
            log.warning("%s is broken (%s %s): the routes stay as they were", self._path, where, first["msg"])
            return
        except OSError as error:
            log.warning("%s can't be read (%s): the routes stay as they were", self._path, error.strerror)
            return
        self.loaded_at = stamp[0] // 1_000_000_000
        log.info("routes: %s", ", ".join(r.model for r in self.routes.routes) or "none")

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

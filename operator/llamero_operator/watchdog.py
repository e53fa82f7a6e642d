"""Ends the process when its watches have gone silent, so that it is started afresh.

Two things tell a silent watch from a quiet cluster. Each byte that a watch receives, the minutely bookmarks among them, and each
answer to a request to watch or list anew is a sign of life (`build_listener`): a watch whose task has died gives none. And what the
watches have told is compared now and then with a list of versions (`Audit`): a watch that is answered but shows nothing is found
by what it did not show. A thread of its own sees to it that this also holds when the event loop hangs.
"""

import asyncio
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast

import aiohttp

from llamero.kube import Kube, KubeError
from llamero.kube.discovery import Versions, observe_versions
from llamero_operator.health import Vitals, find_problems
from llamero_operator.lease import end_process
from llamero_operator.store import ALL_KINDS, KINDS, SELECTORS, Key, Store

logger = logging.getLogger(__name__)

EXIT_WATCH_SILENT = 20
SECOND_LOOK_SECONDS = 10.0
CHECK_SECONDS = 2.0


def build_listener(vitals: Vitals) -> aiohttp.ClientMiddlewareType:
    """A middleware of kopf's session: each answer about a watched kind and each piece of a stream is a sign of life.

    A request that fails is one too: the watch's task is there and tries, it is the API server that is away.
    """

    async def listen(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        kind = find_kind(request.url.path)
        try:
            response = await handler(request)
        finally:
            if kind is not None:
                vitals.beat(kind)
        if kind is not None and response.status < 400:
            vitals.beat(kind, is_watch="watch" in request.url.query)
            response.content = cast(aiohttp.StreamReader, _Heard(response.content, lambda: vitals.beat(kind)))
        return response

    return listen


class _Heard:
    """A stream whose pieces are noticed as they are read."""

    def __init__(self, content: aiohttp.StreamReader, beat: Callable[[], None]) -> None:
        self._content = content
        self._beat = beat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_chunked(size):
            self._beat()
            yield chunk


def find_kind(path: str) -> str | None:
    """The watched kind that a collection's path is of; None for anything else."""
    for kind, resource in ALL_KINDS.items():
        head, _, rest = path.partition(resource.prefix + "/")
        if head or not rest:
            continue
        parts = rest.split("/")
        if parts[0] == "namespaces" and len(parts) == 3:
            parts = parts[2:]
        if parts == [resource.plural]:
            return kind
    return None


class Watchdog:
    """A thread that ends the process when the vitals are bad for good."""

    def __init__(self, vitals: Vitals, end: Callable[[int], None] = end_process) -> None:
        self._vitals = vitals
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(CHECK_SECONDS):
            now = time.monotonic()
            paused, before = now - before > 10 * CHECK_SECONDS, now
            if paused:
                continue  # the whole process stood still: the loop gets its chance first
            problems = find_problems(self._vitals, now)
            if problems and not self._stopped.is_set():
                logger.error("ending the process, so that it is started afresh: %s", "; ".join(problems))
                if self._vitals.loop_beat + 30 < now:
                    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(EXIT_WATCH_SILENT)
                return


def compare(known: Versions, listed: Versions, listed_at: int) -> tuple[dict[Key, int], set[Key]]:
    """What the store lacks or has in an older version (by key, the version listed), and what it has that is no longer there.

    An object newer than the list is not missing from it: the list's own version says how new it is.
    """
    lacking = {key: version for key, (uid, version) in listed.items() if key not in known or known[key][1] < version}
    surplus = {key for key, (uid, version) in known.items() if key not in listed and 0 < version <= listed_at}
    return lacking, surplus


class Audit:
    """Compares the store with the API server's lists, mends what a broken watch made it miss, and says where a watch is silent."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        namespaces: Iterable[str],
        wake: Callable[[Key], None],
        second_look_seconds: float = SECOND_LOOK_SECONDS,
    ) -> None:
        self._kube = kube
        self._store = store
        self._namespaces: list[str | None] = list(namespaces) or [None]
        self._wake = wake
        self._second_look_seconds = second_look_seconds

    async def run(self, kind: str) -> str | None:
        """A sentence where the watch of this kind is silent; None where all is well, or nothing can be said. Raises KubeError."""
        lacking, surplus = await self._look(kind)
        if not lacking and not surplus:
            return None
        await asyncio.sleep(self._second_look_seconds)
        still_lacking, still_surplus = await self._look(kind)
        for key in surplus & still_surplus:
            # A deletion that fell into a gap of the watch: kopf lists anew then, and a list does not show what is gone.
            logger.info("the deletion of %s %s/%s was not seen by the watch", kind, *key)
            if (job := self._store.remove(kind, key)) is not None:
                self._wake(job)
        known = self._store.versions[kind]
        missed = [
            key
            for key, version in lacking.items()
            if key in still_lacking and (key not in known or known[key][1] < version)
        ]
        if not missed:
            return None
        namespace, name = missed[0]
        return f"the watch of {kind} did not show {len(missed)} changes, such as of {namespace}/{name}"

    async def _look(self, kind: str) -> tuple[dict[Key, int], set[Key]]:
        listed: Versions = {}
        listed_at: list[int] = []
        for namespace in self._namespaces:
            version, found = await observe_versions(self._kube, ALL_KINDS[kind], namespace, SELECTORS.get(kind))
            listed |= found
            listed_at.append(version)
        known = {
            k: v
            for k, v in self._store.versions[kind].items()
            if self._namespaces == [None] or k[0] in self._namespaces
        }
        return compare(known, listed, min(listed_at))


async def audit_for_ever(
    audit: Audit, every_seconds: float, vitals: Vitals, end: Callable[[int], None] = end_process
) -> None:
    """Audits each kind in turn; a silent watch ends the process."""
    while True:
        kinds = sorted(vitals.expected) or sorted(KINDS)
        for kind in kinds:
            await asyncio.sleep(every_seconds / len(kinds))
            if not vitals.is_synced:
                continue
            try:
                silent = await audit.run(kind)
            except KubeError as error:
                logger.debug("the watch of %s can't be compared now: %s", kind, error)
                continue
            if silent:
                logger.error("ending the process, so that it is started afresh: %s", silent)
                end(EXIT_WATCH_SILENT)

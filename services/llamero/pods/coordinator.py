"""Which data pod coordinates: it beats in a file of its own prefix, and the others see there whether it lives and whether it is done.

Beats are counted and watched by each reader's own clock: no two pods' clocks are compared.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from llamero.pods.inputs import list_predecessors
from llamero.pods.settings import PodSettings
from llamero.spec.names import AttemptFolder
from llamero.storage import StorageError, read_file, write_file

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0

log = logging.getLogger(__name__)


class Sign(Enum):
    """What a pod sees of its attempt's coordinator."""

    NONE = "none"  # there is none, or it is dead
    ALIVE = "alive"
    ENDED = "ended"  # the attempt is done, well or not


@contextmanager
def beat(settings: PodSettings) -> Iterator[None]:
    """Coordinate within it; afterwards, however it is left, the others know that the attempt is done.

    A pod that is killed, or told to stop, never gets there: it just beats no more, and another pod may take over.
    """
    is_over = threading.Event()

    def run() -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            _write_beat(settings, count, ended=False)
            is_over.wait(BEAT_SECONDS)

    thread = threading.Thread(target=run, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _write_beat(settings, 0, ended=True)


def _write_beat(settings: PodSettings, count: int, ended: bool) -> None:
    try:
        write_file(settings.own.coordinator, json.dumps({"beat": count, "ended": ended, "pod": settings.pod_name}))
    except StorageError as error:
        log.warning("the other data pods can't be told that this one coordinates: %s", error)


class CoordinatorWatch:
    """What one pod has seen of the others' beats."""

    def __init__(self, settings: PodSettings, stale_seconds: float = STALE_SECONDS) -> None:
        self._settings = settings
        self._stale_seconds = stale_seconds
        self._seen: dict[AttemptFolder, tuple[int, float]] = {}

    def look(self, now: float | None = None) -> Sign:
        """Look at the beats; `now` is a time of `time.monotonic()`. A storage that can't be read shows what was seen last."""
        now = time.monotonic() if now is None else now
        sign = Sign.NONE
        try:
            for place, ended, count in self._read():
                if ended:
                    return Sign.ENDED
                if self._seen.get(place, (-1, now))[0] != count:
                    self._seen[place] = (count, now)
        except StorageError as error:
            log.warning("the coordinator can't be looked for: %s", error)
        if any(now - at <= self._stale_seconds for _, at in self._seen.values()):
            sign = Sign.ALIVE
        return sign

    def _read(self) -> Iterator[tuple[AttemptFolder, bool, int]]:
        attempt = self._settings.attempt
        for number, place in list_predecessors(self._settings, attempt.kind):
            if number != attempt.attempt:
                continue
            content = read_file(place.coordinator)
            try:
                if content is not None:
                    row = json.loads(content)
                    yield place, bool(row["ended"]), int(row["beat"])
            except (ValueError, KeyError, TypeError):
                continue

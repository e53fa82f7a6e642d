"""Keeps a training's checkpoints in the storage behind its back, and brings the newest whole one of an earlier attempt to the next.

The training writes to the scratch disk and never waits for the storage. What a checkpoint holds is the training's business.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from llamero.pods.inputs import list_predecessors
from llamero.pods.pod import Pod
from llamero.spec.names import MANIFEST_NAME, AttemptFolder, parse_checkpoint_name
from llamero.spec.status import WorkKind
from llamero.storage import (
    StorageError,
    TornFolder,
    commit_folder,
    delete_tree,
    fetch_folder,
    join_uri,
    list_names,
    read_file,
)

LOOK_SECONDS = 1.0
RETRY_DELAYS_SECONDS = (1.0, 4.0, 15.0)
_HOPELESS = ("No space left", "quota exceeded", "Read-only file system", "Permission denied", "File too large")

log = logging.getLogger(__name__)


def keep_trying(what: str, write: Callable[[], object]) -> None:
    """Write to the storage, again where a moment may mend it. Raises StorageError."""
    for delay in (*RETRY_DELAYS_SECONDS, None):
        try:
            write()
            return
        except StorageError as error:
            if delay is None or any(phrase in str(error) for phrase in _HOPELESS):
                raise
            log.warning("%s can't be written (%s); trying again in %.0f s", what, error, delay)
            time.sleep(delay)


class CheckpointKeeper:
    """Copies each checkpoint that the training commits to the pod's own prefix; the newest `keep` stay there."""

    def __init__(self, folder: Path, place: AttemptFolder, keep: int, known: int | None = None) -> None:
        self._folder = folder
        self._place = place
        self._keep = keep
        self._start = known  # the step that the training began with: it lies in a predecessor's prefix
        self._kept: list[int] = []
        self._is_away = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def __enter__(self) -> "CheckpointKeeper":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._end.set()

    def save_last(self, seconds: float) -> int | None:
        """Keep the newest checkpoint, waiting at most so long for it; the newest step that is in the storage then."""
        self._end.set()
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            return self._newest()
        saver = threading.Thread(target=self._look, name="last checkpoint", daemon=True)
        began = time.monotonic()
        saver.start()
        saver.join(max(0.0, seconds - (time.monotonic() - began)))
        return self._newest()

    def _newest(self) -> int | None:
        return self._kept[-1] if self._kept else self._start

    def _run(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        """Keep the newest committed checkpoint that is not kept yet; older ones that were passed by are not needed."""
        steps = [parse_checkpoint_name(p.parent.name) for p in self._folder.glob(f"step-*/{MANIFEST_NAME}")]
        newest = max((s for s in steps if s is not None), default=None)
        if newest is None or newest == self._newest():
            return
        try:
            self._copy(newest)
        except (OSError, StorageError) as error:
            if not self._is_away:
                log.warning("the checkpoint of step %d can't be kept, the training goes on: %s", newest, error)
            self._is_away = True
            return
        self._is_away = False
        self._kept.append(newest)
        log.info("the checkpoint of step %d is kept in %s", newest, self._place.checkpoint(newest))
        self._drop_old()

    def _copy(self, step: int) -> None:
        """By way of hard links, since the training removes old checkpoints when it likes."""
        name = self._place.checkpoint(step).rsplit("/", 1)[-1]
        linked = self._folder / f".keep-{name}"
        shutil.rmtree(linked, ignore_errors=True)
        linked.mkdir()
        try:
            for path in (self._folder / name).iterdir():
                os.link(path, linked / path.name)
            if (linked / MANIFEST_NAME).is_file():
                commit_folder(linked, self._place.checkpoint(step))
        finally:
            shutil.rmtree(linked, ignore_errors=True)

    def _drop_old(self) -> None:
        while len(self._kept) > self._keep:
            step = self._kept.pop(0)
            try:
                delete_tree(self._place.checkpoint(step))
            except StorageError as error:
                log.warning("the old checkpoint of step %d stays: %s", step, error)


def bring_checkpoint(pod: Pod, identity: Mapping[str, str], folder: Path) -> int | None:
    """Fetch the newest whole checkpoint of this very training that any earlier pod kept; its step, or None where there is none.

    A damaged one is refused, and the one before it is used. Raises StorageError where the storage can't be read at all.
    """
    candidates = []
    for attempt, place in list_predecessors(pod.settings, WorkKind.TRAIN):
        steps = [parse_checkpoint_name(name) for name in list_names(place.checkpoints)]
        candidates += [(step, attempt, place) for step in steps if step is not None]
    for step, attempt, place in sorted(candidates, key=lambda c: c[:2], reverse=True):
        uri = place.checkpoint(step)
        try:
            if not _is_of(uri, identity):
                continue
            fetch_folder(uri, folder / uri.rsplit("/", 1)[-1])
        except TornFolder as error:
            log.warning("A checkpoint is passed over: %s", error)
            continue
        log.info("going on from the checkpoint of step %d that attempt %d kept", step, attempt)
        return step
    return None


def _is_of(uri: str, identity: Mapping[str, str]) -> bool:
    content = read_file(join_uri(uri, MANIFEST_NAME))
    if content is None:
        raise TornFolder(f"{uri} has no {MANIFEST_NAME}: it was not written to its end.")
    try:
        found = json.loads(content)["identity"]
        return all(found.get(k) == v for k, v in identity.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornFolder(f"{uri} has a {MANIFEST_NAME} that can't be read: {type(error).__name__}.") from error

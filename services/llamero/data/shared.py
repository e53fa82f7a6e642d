"""Shards where several workers see them: a folder that all of them mount, or an object store with a scratch folder for each.

On a mounted folder everything is used in place. From an object store what a task needs is fetched into scratch, and what it
made is uploaded, its manifest last. What the files mean is left to the tasks.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from llamero.data.shards import Shard, commit_shard, discard_folder, parse_manifest, read_shard
from llamero.spec.names import MANIFEST_NAME
from llamero.storage import (
    StorageError,
    commit_folder,
    delete_tree,
    download_folder,
    fetch_folder,
    find_missing,
    is_local,
    join_uri,
    list_files,
    list_names,
    local_path,
    open_uri,
    read_file,
)

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_COMPRESSIONS = frozenset({".gz", ".bz2", ".xz", ".zst"})
_ATTEMPTS = 4
_RETRY_SECONDS = 1.0

T = TypeVar("T")


class SharedStorageError(StorageError):
    """The storage that the workers share failed again and again; what was done so far stands there."""


class SharedFiles:
    """Reads and commits shards by URI. `scratch` is a local folder of this worker alone; mounted folders need none."""

    def __init__(self, scratch: Path | None = None) -> None:
        self._scratch = scratch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedFiles) and other._scratch == self._scratch

    def __hash__(self) -> int:
        return hash(self._scratch)

    def read(self, uri: str, read_content: bool = False) -> Shard | None:
        """The committed shard, None where there is none or it is torn; contents are checked on a mounted folder alone."""
        if is_local(uri):
            return read_shard(local_path(uri), read_content)
        content = _try_often(lambda: read_file(join_uri(uri, MANIFEST_NAME)))
        manifest = parse_manifest(content) if content is not None else None
        if manifest is None:
            return None
        files, summary = manifest
        if read_content and _try_often(lambda: find_missing(uri, files)) is not None:
            return None
        return Shard(uri, files, summary, is_reused=True)

    def commit(self, uri: str, build: Callable[[Path], dict[str, Any]]) -> Shard:
        """The shard at `uri`: the finished one, or made by `build(partial folder) -> summary`."""
        if is_local(uri):
            return commit_shard(local_path(uri), build)
        finished = self.read(uri, read_content=True)
        if finished is not None:
            return finished
        local = self._place("made", uri)
        try:
            made = commit_shard(local, build)
            _try_often(lambda: commit_folder(local, uri))
            return Shard(uri, made.files, made.summary, is_reused=False)
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def fetch(self, uri: str, names: Sequence[str]) -> Path:
        """A local folder with these files of a shard; they stay in scratch for the next who asks."""
        if is_local(uri):
            return local_path(uri)
        target = self._place("fetched", uri, *names)
        return target if target.is_dir() else _try_often(lambda: fetch_folder(uri, target, names))

    @contextmanager
    def borrow(self, uri: str, names: Sequence[str] | None = None) -> Iterator[Path]:
        """A local folder with these files of a shard (all by default), gone afterwards where it is a copy."""
        if is_local(uri):
            yield local_path(uri)
            return
        target = self._place("borrowed", uri, *(names or ()))
        try:
            yield _try_often(lambda: fetch_folder(uri, target, names))
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def fetch_tokenizer(self, uri: str) -> Path:
        """A local folder with the small files of a base model, no weights."""
        if is_local(uri):
            return local_path(uri)
        target = self._place("tokenizer", uri)
        return _try_often(lambda: download_folder(uri, target, _TOKENIZER_FILES))

    def fetch_named(self, uri: str, *, allow_http: bool = False) -> Path:
        """A local path of a file or folder that a step's options name; a copy stays in scratch for the next who asks."""
        if is_local(uri):
            return local_path(uri)
        target = self._place("named", uri)
        return (
            target / name_copy(uri)
            if target.is_dir()
            else _try_often(lambda: copy_named(uri, target, allow_http=allow_http))
        )

    def fetch_base(self, uri: str) -> Path:
        """A local folder with all files of a base model."""
        if is_local(uri):
            return local_path(uri)
        target = self._place("base", uri)
        return _try_often(lambda: download_folder(uri, target, ("*",)))

    def take(self, uri: str, target: Path) -> Path:
        """The shard's files, to move at will: renamed or copied to `target`, where no doubled task will look for them."""
        if not is_local(uri):
            return _try_often(lambda: fetch_folder(uri, target))
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(local_path(uri), target))

    def discard(self, uri: str) -> None:
        """Remove a damaged shard, so that it does not count as done."""
        if is_local(uri):
            discard_folder(local_path(uri))
        else:
            _try_often(lambda: delete_tree(uri))

    def list(self, uri: str) -> frozenset[str]:
        """The names right below a folder, none where it does not exist."""
        return frozenset(_try_often(lambda: list_names(uri)))

    def _place(self, kind: str, *names: str) -> Path:
        if self._scratch is None:
            raise ValueError(f"a scratch folder is needed for {names[0]}")
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:24]
        return self._scratch / kind / digest


def name_copy(uri: str) -> str:
    """What a copy of a file or folder is called: its own name, without the suffix of a compression, which the copy has not."""
    name = uri.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1] or "file"
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in _COMPRESSIONS else name


def copy_named(uri: str, target: Path, token: str | None = None, *, allow_http: bool = False) -> Path:
    """Copy a file, or a folder's files, into a new local folder as `name_copy` says. Raises StorageError."""
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=_make(target.parent)))
    folder = uri.rstrip("/") + "/"
    try:
        for file in list_files(uri, token):
            place = partial / name_copy(uri)
            if file.startswith(folder):
                place = place / file.removeprefix(folder)
            _make(place.parent)
            with open_uri(file, token, allow_http=allow_http) as stream, place.open("wb") as out:
                shutil.copyfileobj(stream, out)
        with suppress(OSError):  # another task of this worker was quicker
            partial.rename(target)
        return target / name_copy(uri)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_file(uri: str) -> None:
    """Remove one file; one that is not there is no error. Raises StorageError or OSError."""
    if is_local(uri):
        local_path(uri).unlink(missing_ok=True)
    else:
        delete_tree(uri)


def _try_often(action: Callable[[], T]) -> T:
    """Shared storages have short troubles; one that lasts raises SharedStorageError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except StorageError as error:
            if attempt == _ATTEMPTS:
                raise SharedStorageError(str(error)) from error
            time.sleep(_RETRY_SECONDS * attempt)
    raise AssertionError("unreachable")

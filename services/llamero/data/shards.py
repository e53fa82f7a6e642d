"""Shards on disk: raw rows as lines, and folders of results that are committed by a manifest, written last.

A folder's name holds the digest of all that decides its content, so that a finished shard is never done twice, a doubled task
changes nothing and a torn one is done again. What is in the folders is the tasks' business.
"""

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import orjson

from llamero.data.rows import BrokenRow, RawRow, Row
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import SCHEMA_VERSION, FileEntry
from llamero.storage import describe_files, find_damage, local_path, write_atomically

_PARTIAL = ".partial-"
_TORN = ".torn-"
_ABANDONED_SECONDS = 6 * 3600
"""A half-made folder of another machine that nobody wrote to for so long is nobody's any more."""


@dataclass(frozen=True)
class Shard:
    """A committed folder: its files, and the summary that the coordinator counts with."""

    uri: str
    files: list[FileEntry]
    summary: dict[str, Any]
    is_reused: bool

    @property
    def folder(self) -> Path:
        """Where it lies on this machine. Raises ValueError where it does not."""
        return local_path(self.uri)


@cache
def code_version() -> str:
    """A digest of the code that makes shards: whatever it was changed by, its shards are made anew."""
    package = Path(__file__).parent
    model = package.parent / "model"
    files = [*package.rglob("*.py"), *(model / f"{name}.py" for name in ("bases", "spans", "templates", "tokens"))]
    digest = sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(package.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def read_shard(folder: Path, read_content: bool = True) -> Shard | None:
    """The committed shard in a folder; None where there is none, or it is torn or damaged (with `read_content`, in any byte)."""
    try:
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
        if manifest is None or find_damage(folder, manifest[0], read_content) is not None:
            return None
    except OSError:  # not there, or taken away while it was looked at
        return None
    return Shard(str(folder), *manifest, is_reused=True)


def parse_manifest(content: bytes) -> tuple[list[FileEntry], dict[str, Any]] | None:
    """A shard's files and summary from its manifest; None where it is torn."""
    try:
        manifest = orjson.loads(content)
        return [FileEntry.model_validate(f) for f in manifest["files"]], dict(manifest["summary"])
    except (ValueError, KeyError, TypeError):
        return None


def commit_shard(folder: Path, build: Callable[[Path], dict[str, Any]]) -> Shard:
    """The shard in `folder`: the finished one, or made by `build(partial folder) -> summary`, sealed and renamed into place."""
    finished = read_shard(folder)
    if finished is not None:
        return finished
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{_machine()}-{os.getpid()}-", dir=folder.parent))
    try:
        summary = build(partial)
        files = describe_files(partial)
        manifest = {
            "schemaVersion": SCHEMA_VERSION,
            "files": [f.to_json_dict() for f in files],
            "summary": summary,
        }
        write_atomically(partial / MANIFEST_NAME, orjson.dumps(manifest))
        partial.chmod(0o755)
        return _put_in_place(partial, folder, Shard(str(folder), files, summary, is_reused=False))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path, shard: Shard) -> Shard:
    """Rename, where nobody did the same before; a torn folder in the way is removed."""
    for _ in range(5):
        try:
            partial.rename(folder)
            return shard
        except OSError as error:
            if not folder.exists() and not partial.exists():
                raise
            finished = read_shard(folder)
            if finished is not None:
                return finished
            discard_folder(folder)
            last = error
    raise last


def discard_folder(folder: Path) -> None:
    """Remove a torn folder: moved aside in one step first, so that never a finished one is emptied that took its place meanwhile."""
    aside = Path(tempfile.mkdtemp(prefix=f"{_TORN}{_machine()}-{os.getpid()}-", dir=folder.parent))
    try:
        folder.rename(aside / "folder")
    except FileNotFoundError:  # another worker was quicker
        aside.rmdir()
        return
    if read_shard(aside / "folder") is not None:
        with suppress(OSError):  # the next one stands there already
            (aside / "folder").rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


@cache
def _machine() -> str:
    """This machine's name, or a pod's: process ids mean something only there."""
    return re.sub(r"[^A-Za-z0-9.]+", ".", socket.gethostname()) or "unnamed"


def remove_partials(cache_folder: Path) -> None:
    """Remove what killed workers of this machine left half-made, and what those of others did not touch for hours."""
    for partial in [*cache_folder.glob(f"{_PARTIAL}*"), *cache_folder.glob(f"{_TORN}*")]:
        machine, _, rest = partial.name.removeprefix(_PARTIAL).removeprefix(_TORN).partition("-")
        owner = rest.partition("-")[0]
        if machine == _machine() and owner.isdecimal():
            is_abandoned = not Path(f"/proc/{owner}").exists()
        else:
            is_abandoned = _newest_change(partial) < time.time() - _ABANDONED_SECONDS
        if is_abandoned:
            shutil.rmtree(partial, ignore_errors=True)


def _newest_change(folder: Path) -> float:
    """When something in the folder was last written, in seconds since the epoch by the file server's clock."""
    newest = 0.0
    for path in [folder, *folder.rglob("*")]:
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def write_raw_row(stream: IO[bytes], row: Row) -> None:
    """One row as a line: its number (and its file as JSON), a tab and its JSON; a broken one's description after an exclamation mark."""
    place = b"%d%b" % (row.line, orjson.dumps(row.file)) if row.file else b"%d" % row.line
    if isinstance(row, RawRow):
        stream.write(b"%b\t%b\n" % (place, row.json))
    else:
        described = orjson.dumps({"detail": row.detail, "text": row.text})
        stream.write(b"%b\t!%b\n" % (place, described))


def read_raw_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """What `write_raw_row` wrote."""
    for line in lines:
        place, _, content = line.rstrip(b"\n").partition(b"\t")
        number, quote, name = place.partition(b'"')
        file = orjson.loads(quote + name) if quote else ""
        if content.startswith(b"!"):
            described = orjson.loads(content[1:])
            yield BrokenRow(int(number), described["detail"], described["text"], file)
        else:
            yield RawRow(int(number), content, file)

"""Shards on disk: raw rows as lines, and folders of results that are committed by a manifest, written last.

A folder's name holds the digest of all that decides its content, so that a finished shard is never done twice, a doubled task
changes nothing and a torn one is done again. What is in the folders is the tasks' business.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import orjson

from llamero.data.rows import BrokenRow, RawRow, Row
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import SCHEMA_VERSION, FileEntry
from llamero.storage import describe_files, find_damage, write_atomically

_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Shard:
    """A committed folder: its files, and the summary that the coordinator counts with."""

    folder: Path
    files: list[FileEntry]
    summary: dict[str, Any]
    is_reused: bool


@cache
def code_version() -> str:
    """A digest of the code that makes shards: whatever it was changed by, its shards are made anew."""
    package = Path(__file__).parent
    files = [*package.rglob("*.py"), package.parent / "model" / "templates.py", package.parent / "model" / "tokens.py"]
    digest = sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(package.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def read_shard(folder: Path, read_content: bool = True) -> Shard | None:
    """The committed shard in a folder; None where there is none, or it is torn or damaged (with `read_content`, in any byte)."""
    try:
        manifest = orjson.loads((folder / MANIFEST_NAME).read_bytes())
        files = [FileEntry.model_validate(f) for f in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if find_damage(folder, files, read_content) is not None:
        return None
    return Shard(folder, files, manifest["summary"], is_reused=True)


def commit_shard(folder: Path, build: Callable[[Path], dict[str, Any]]) -> Shard:
    """The shard in `folder`: the finished one, or made by `build(partial folder) -> summary`, sealed and renamed into place."""
    finished = read_shard(folder)
    if finished is not None:
        return finished
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=folder.parent))
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
        return _put_in_place(partial, folder, Shard(folder, files, summary, is_reused=False))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path, shard: Shard) -> Shard:
    """Rename, where nobody did the same before; a torn folder in the way is removed."""
    for _ in range(3):
        try:
            partial.rename(folder)
            return shard
        except OSError as error:
            if not folder.exists():
                raise
            finished = read_shard(folder)
            if finished is not None:
                return finished
            shutil.rmtree(folder, ignore_errors=True)
            last = error
    raise last


def remove_partials(cache_folder: Path) -> None:
    """Remove what killed workers of this machine left half-made."""
    for partial in cache_folder.glob(f"{_PARTIAL}*"):
        owner = partial.name.removeprefix(_PARTIAL).split("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(partial, ignore_errors=True)


def write_raw_row(stream: IO[bytes], row: Row) -> None:
    """One row as a line: its number, a tab and its JSON; a broken one's description after an exclamation mark."""
    if isinstance(row, RawRow):
        stream.write(b"%d\t%b\n" % (row.line, row.json))
    else:
        described = orjson.dumps({"detail": row.detail, "text": row.text})
        stream.write(b"%d\t!%b\n" % (row.line, described))


def read_raw_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """What `write_raw_row` wrote."""
    for line in lines:
        number, _, content = line.rstrip(b"\n").partition(b"\t")
        if content.startswith(b"!"):
            described = orjson.loads(content[1:])
            yield BrokenRow(int(number), described["detail"], described["text"])
        else:
            yield RawRow(int(number), content)

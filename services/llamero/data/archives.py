"""Archives as sources: the members of .zip and .tar files (also .tar.gz, .tgz, .tar.bz2, .tar.xz, .tar.zst) as streams, one after the other.

Nothing is unpacked to disk, so that no name can lead anywhere; what is no plain file, or has a name that climbs, is passed over with a
sentence. What unpacks to far more than any text does is refused.
"""

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from lzma import LZMAError
from pathlib import PurePosixPath
from typing import IO, Any, Final

from llamero.storage import READ_BLOCK_BYTES, Refused, StorageError
from llamero.storage.unpacking import MAX_RATIO, RATIO_FREE_BYTES, find_packing, unpack

MAX_MEMBERS: Final = 100_000
_MAX_HEADER_BYTES: Final = 1 << 20
_UNREAD = (".7z", ".rar")
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_DAMAGE = (EOFError, zlib.error, LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)
_NO_DATA = frozenset({"readme", "readme.md", "license", "license.txt", "license.md"})


@dataclass(frozen=True)
class Member:
    """A member of an archive: its name and its plain content, to be read before the next one; or `fault`, why it is passed over."""

    name: str
    stream: IO[bytes] | None
    fault: str = ""


def is_archive(name: str) -> bool:
    """Whether a file of this name is read as an archive."""
    return name.lower().endswith((".zip", *_TAR_SUFFIXES, *_UNREAD))


def read_members(stream: IO[bytes], name: str) -> Iterator[Member]:
    """An archive's members in its order (a zip's by name). `stream` is the file, a tar's unpacked already. Damage ends them with a fault.

    Raises Refused for what can't be read as it is, StorageError where the source itself fails.
    """
    lower = name.lower()
    if lower.endswith(_UNREAD):
        raise Refused(
            f"{name} is packed by {lower[-2:] if lower.endswith('.7z') else 'rar'}, which can't be read as it is: unpack it first."
        )
    members = _read_zip(stream, name) if lower.endswith(".zip") else _read_tar(stream, name)
    last = "its beginning"
    try:
        for member in members:
            last = member.name
            yield member
    except StorageError:
        raise
    except _DAMAGE as error:
        yield Member(name, None, f"The archive is cut off or damaged after {last}: {error}")
    except OSError as error:
        if error.errno is not None:
            raise StorageError(f"{name} can't be read to its end: {error.strerror}") from error
        yield Member(name, None, f"The archive is cut off or damaged after {last}: {error}")


# -- tar -------------------------------------------------------------------------------------------------------------------------


class _Header(tarfile.TarInfo):
    """A header whose extensions (long names, pax) must be small: they are read into memory."""

    def _proc_member(self, archive: Any) -> Any:
        is_extension = self.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if is_extension and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is larger than any name")
        return super()._proc_member(archive)  # type: ignore[misc]


def _read_tar(stream: IO[bytes], name: str) -> Iterator[Member]:
    watched = _Watched(stream)
    count = 0
    with tarfile.open(fileobj=watched, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
        for entry in archive:
            count += 1
            _refuse_count(count, name)
            archive.members.clear()  # a tar of a million members keeps none of them
            if entry.isdir() or _is_no_data(entry.name):
                continue
            if entry.islnk() or entry.issym():
                yield Member(entry.name, None, "The member is a link, not a file: it is passed over.")
            elif not entry.isreg() or entry.issparse():
                yield Member(entry.name, None, "The member is a device, a pipe or a sparse file: it is passed over.")
            elif fault := _find_fault(entry.name):
                yield Member(entry.name, None, fault)
            else:
                yield from _open_member(entry.name, archive.extractfile(entry))
    if watched.is_cut_off:
        raise EOFError("its end is missing")


class _Watched:
    """A tar's bytes; a whole one ends with blocks of zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._tail = b""
        self._has_ended = False

    def read(self, size: int) -> bytes:
        parts = []
        left = size
        while left and (data := self._stream.read(left)):
            parts.append(data)
            left -= len(data)
        block = b"".join(parts)
        self._has_ended = self._has_ended or left > 0
        self._tail = (self._tail + block)[-512:] if len(block) < 512 else block[-512:]
        return block

    @property
    def is_cut_off(self) -> bool:
        return self._has_ended and bool(self._tail.strip(b"\0"))


# -- zip -------------------------------------------------------------------------------------------------------------------------


def _read_zip(stream: IO[bytes], name: str) -> Iterator[Member]:
    with _seekable(stream) as file:
        file.seek(0, 2)
        budget = _Budget(name, file.tell())
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _refuse_count(len(entries), name)
            for entry in sorted(entries, key=lambda e: e.filename):
                mode = entry.external_attr >> 16
                if entry.is_dir() or _is_no_data(entry.filename):
                    continue
                if mode & 0o170000 not in (0, 0o100000):
                    yield Member(
                        entry.filename, None, "The member is a link or a device, not a file: it is passed over."
                    )
                elif fault := _find_fault(entry.filename):
                    yield Member(entry.filename, None, fault)
                elif entry.flag_bits & 1:
                    yield Member(entry.filename, None, "The member is locked by a password: unpack it first.")
                else:
                    yield from _open_zipped(archive, entry, budget)


def _open_zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: "_Budget") -> Iterator[Member]:
    try:
        content = archive.open(entry)
    except _DAMAGE as error:  # this one alone: the others are found by the archive's directory
        yield Member(entry.filename, None, f"The member can't be unpacked: {error}")
        return
    yield from _open_member(entry.filename, BufferedReader(_Metered(content, budget), READ_BLOCK_BYTES))


@contextmanager
def _seekable(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The stream, or a copy of it on disk where it can't be sought in: a zip's directory stands at its end."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stream, spool, READ_BLOCK_BYTES)
        yield spool


@dataclass
class _Budget:
    """What all members of an archive may unpack to: also members that share their bytes, or hold each other."""

    name: str
    packed: int
    unpacked: int = 0

    def spend(self, size: int) -> None:
        self.unpacked += size
        if self.unpacked > RATIO_FREE_BYTES and self.unpacked > MAX_RATIO * self.packed:
            raise Refused(
                f"{self.name} unpacks to more than {MAX_RATIO:,.0f} times its size, as no text does: nothing more is read of it."
            )


class _Metered(RawIOBase):
    def __init__(self, stream: Any, budget: _Budget) -> None:
        super().__init__()
        self._stream, self._budget = stream, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


# -- members ---------------------------------------------------------------------------------------------------------------------


def _open_member(name: str, content: Any) -> Iterator[Member]:
    if is_archive(name):
        yield Member(name, None, "The member is an archive within an archive: unpack it first.")
        return
    packing = find_packing(name)
    yield Member(name, unpack(content, packing, name) if packing else content)


def _find_fault(name: str) -> str:
    """Why a member of this name is passed over; empty where it is not. Nothing is ever written by it."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "The member's name leads out of the archive: it is passed over."
    return ""


def _is_no_data(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    is_hidden = any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts
    return is_hidden or not parts or parts[-1].lower() in _NO_DATA


def _refuse_count(count: int, name: str) -> None:
    if count > MAX_MEMBERS:
        raise Refused(f"{name} holds more than {MAX_MEMBERS:,} members: unpack it, and join its files.")

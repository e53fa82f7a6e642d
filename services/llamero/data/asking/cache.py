"""Answers by their keys, kept for all workers and later runs: append-only JSONL segments in a folder, and an index of keys in memory.

A process writes segments of its own alone, so that nobody waits for anybody and nobody appends to a torn line. A segment is sealed when
it is full or its process ends: an index file beside it then saves others from reading it. What has no index file is read as far as it is
whole. On a disk each answer is written as it comes (a killed process loses none); to an object store, which can't append, a segment is
written anew every few seconds.

`<folder>/<ledger>-<random>.jsonl` lines: `{"key", "text", "finish", "in", "out"}` for a chat answer, `{"key", "vector", "in"}` (base64 of
float32) for an embedding, `{"in", "out"}` for tokens that were used for nothing. The tokens of all segments of a ledger are what was
spent on it. What is asked stands nowhere.
"""

import atexit
import base64
import errno
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.asking.questions import KEY_BYTES
from llamero.data.errors import NoSpaceError
from llamero.storage import StorageError, is_local, join_uri, list_names, local_path, read_file, write_file

SEGMENT_BYTES: Final = 4 << 20
LOCAL_SYNC_SECONDS: Final = 0.5
REMOTE_SYNC_SECONDS: Final = 3.0
_DISK_SECONDS = 5.0
_SEGMENT, _SEAL = ".jsonl", ".index"
_OPEN_FILES = 16
_OPEN_OBJECTS = 4
_RECENT_KEYS = 1 << 16
_READ_BYTES = 1 << 13
_TRIES = 4
_RETRY_SECONDS = 1.0

INDEX_DTYPE = np.dtype([("key", "<u8"), ("segment", "<u4"), ("offset", "<u8")])
"""20 bytes an answer: the first half of the key, which a line's own key confirms, and where the line is."""

SEALED_DTYPE = np.dtype([("key", f"V{KEY_BYTES}"), ("offset", "<u8")])


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer out of the cache: a chat answer's text and finish, or an embedding's vector."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    vector: NDArray[np.float32] | None = None


@dataclass
class _Segment:
    """What is known of one segment: how far it was read, and whether it will grow."""

    number: int
    ledger: str
    read_bytes: int = 0
    is_sealed: bool = False


@dataclass
class _Writer:
    """This process's segment of a ledger. `content` is kept where storage can't append; `entries` go into the index file."""

    name: str
    number: int
    stream: int | None = None
    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    saved: int = 0
    saved_at: float = 0.0
    entries: list[tuple[bytes, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0, 0])


class AnswerCache:
    """The answers in one folder (a model's). Safe for threads; processes share the folder, each with an object of its own.

    Memory: 20 bytes an answer, and for an object store the segment that is being written (4 MiB).
    Raises StorageError where the folder can't be read or written, NoSpaceError where the disk is full.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._is_local = is_local(folder)
        self.sync_seconds = LOCAL_SYNC_SECONDS if self._is_local else REMOTE_SYNC_SECONDS
        self._lock = threading.RLock()
        self._segments: dict[str, _Segment] = {}
        self._names: list[str] = []
        self._index: NDArray = np.empty(0, INDEX_DTYPE)
        self._recent: dict[bytes, tuple[int, int]] = {}
        self._spent: dict[str, list[int]] = {}
        self._writers: dict[str, _Writer] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._objects: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        """How many answers the index names; one that two workers asked for counts twice."""
        return len(self._index) + len(self._recent)

    def get_spent(self, ledger: str) -> tuple[int, int]:
        """Tokens asked and answered, by all workers as far as they are known here."""
        with self._lock:
            asked, answered = self._spent.get(ledger, (0, 0))
            return asked, answered

    # -- finding -----------------------------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> Kept | None:
        """The answer by its key."""
        with self._lock:
            for number, offset in self._find_places(key):
                line = self._read_line(self._names[number], offset)
                kept = _read_kept(line, key) if line is not None else None
                if kept is not None:
                    return kept
            return None

    def _find_places(self, key: bytes) -> list[tuple[int, int]]:
        places = [self._recent[key]] if key in self._recent else []
        start, end = (
            int(np.searchsorted(self._index["key"], np.array(_half(key), "<u8"), side)) for side in ("left", "right")
        )
        return places + [(int(row["segment"]), int(row["offset"])) for row in self._index[start:end]]

    def _read_line(self, name: str, offset: int) -> bytes | None:
        if self._is_local:
            return self._read_local_line(name, offset)
        writer = next((w for w in self._writers.values() if w.name == name), None)
        content = bytes(writer.content[offset:]) if writer else self._fetch_object(name)[offset:]
        line, end, _ = content.partition(b"\n")
        return line if end else None

    def _read_local_line(self, name: str, offset: int) -> bytes | None:
        descriptor = self._files.pop(name, None)
        if descriptor is None:
            try:
                descriptor = os.open(local_path(join_uri(self.folder, name)), os.O_RDONLY)
            except FileNotFoundError:
                return None
        self._files[name] = descriptor
        while len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        pieces = b""
        while piece := os.pread(descriptor, _READ_BYTES, offset + len(pieces)):
            head, end, _ = piece.partition(b"\n")
            pieces += head
            if end:
                return pieces
        return None

    def _fetch_object(self, name: str) -> bytes:
        content = self._objects.pop(name, None)
        if content is None:
            content = read_file(join_uri(self.folder, name)) or b""
        if self._segments[name].is_sealed:
            self._objects[name] = content
            while len(self._objects) > _OPEN_OBJECTS:
                self._objects.popitem(last=False)
        return content

    # -- keeping -----------------------------------------------------------------------------------------------------------------

    def keep_text(self, ledger: str, key: bytes, text: str, finish: str, tokens: tuple[int, int]) -> None:
        """Keep a chat answer; `tokens` asked and answered."""
        self._append(ledger, key, {"text": text, "finish": finish}, tokens)

    def keep_vectors(self, ledger: str, keys: list[bytes], vectors: NDArray[np.float32], tokens: int) -> None:
        """Keep the vectors of one request, [n, d]; its tokens are divided among them."""
        share, rest = divmod(tokens, len(keys))
        for number, (key, vector) in enumerate(zip(keys, vectors, strict=True)):
            encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            self._append(ledger, key, {"vector": encoded}, (share + (number < rest), 0))

    def note_waste(self, ledger: str, tokens: tuple[int, int]) -> None:
        """Keep in the account what was used for nothing."""
        self._append(ledger, None, {}, tokens)

    def _append(self, ledger: str, key: bytes | None, values: dict[str, Any], tokens: tuple[int, int]) -> None:
        named = {"key": key.hex()} if key is not None else {}
        line = orjson.dumps(named | values | {"in": tokens[0], "out": tokens[1]}) + b"\n"
        with self._lock:
            writer = self._writers.get(ledger) or self._open_writer(ledger)
            if writer.size and writer.size + len(line) > SEGMENT_BYTES:
                self._seal(ledger)
                writer = self._open_writer(ledger)
            self._write(writer, line)
            if key is not None:
                writer.entries.append((key, writer.size))
                self._add_key(key, writer.number, writer.size)
            writer.size += len(line)
            for total in (writer.tokens, self._spent.setdefault(ledger, [0, 0])):
                total[0] += tokens[0]
                total[1] += tokens[1]

    def _open_writer(self, ledger: str) -> _Writer:
        name = f"{ledger}-{uuid.uuid4().hex[:16]}{_SEGMENT}"
        segment = self._know(name)
        segment.is_sealed = True  # nobody else writes it: it is never read again for what is in it
        writer = _Writer(name, segment.number)
        if self._is_local:
            path = local_path(join_uri(self.folder, name))
            path.parent.mkdir(parents=True, exist_ok=True)
            writer.stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._writers[ledger] = writer
        return writer

    def _write(self, writer: _Writer, line: bytes) -> None:
        if writer.stream is None:
            writer.content += line
            return
        try:
            written = 0
            while written < len(line):
                written += os.write(writer.stream, line[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(writer.stream, writer.size)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{self.folder} can't be written: {error.strerror}.") from error
            raise NoSpaceError(f"No space is left for the answers in {self.folder}: {error.strerror}.") from error

    def _add_key(self, key: bytes, segment: int, offset: int) -> None:
        self._recent.setdefault(key, (segment, offset))
        if len(self._recent) >= _RECENT_KEYS:
            rows = [(_half(k), *place) for k, place in self._recent.items()]
            self._merge([np.array(rows, INDEX_DTYPE)])
            self._recent.clear()

    def _merge(self, rows: list[NDArray]) -> None:
        if not rows:
            return
        merged = np.concatenate([self._index, *rows])
        self._index = merged[np.argsort(merged["key"], kind="stable")]

    # -- between processes -------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Save what was kept, so that it outlives this machine, and read what others have kept."""
        self.save()
        self.refresh()

    def save(self, is_hurried: bool = True) -> None:
        """Bring this process's segments to storage. Without hurry a disk's, which others see anyway, every few seconds only."""
        with self._lock:  # held while an object is written: an older content must never land on a newer one
            for writer in self._writers.values():
                is_due = is_hurried or not self._is_local or time.monotonic() >= writer.saved_at + _DISK_SECONDS
                if writer.saved < writer.size and is_due:
                    self._save(writer)

    def _save(self, writer: _Writer) -> None:
        if writer.stream is not None:
            with suppress(OSError):  # a disk that can't sync keeps what it can
                os.fsync(writer.stream)
        else:
            _try_often(lambda: write_file(join_uri(self.folder, writer.name), bytes(writer.content)))
        writer.saved, writer.saved_at = writer.size, time.monotonic()

    def refresh(self) -> None:
        """Read what other processes have kept since the last time."""
        names = _try_often(lambda: list_names(self.folder))
        seals = {n.removesuffix(_SEAL) for n in names if n.endswith(_SEAL)}
        sealed: list[NDArray] = []
        for name in (n for n in names if n.endswith(_SEGMENT)):
            with self._lock:
                segment = self._know(name)
                if segment.is_sealed:
                    continue
                is_new = not segment.read_bytes
                if name.removesuffix(_SEGMENT) in seals and is_new and self._read_seal(name, segment, sealed):
                    continue
                self._read_growth(name, segment)
                # A sealed segment was whole when its index file was written: what was read after that is all of it.
                segment.is_sealed = name.removesuffix(_SEGMENT) in seals
        with self._lock:
            self._merge(sealed)

    def _know(self, name: str) -> _Segment:
        if name not in self._segments:
            self._segments[name] = _Segment(len(self._names), name.split("-", 1)[0])
            self._names.append(name)
        return self._segments[name]

    def _read_seal(self, name: str, segment: _Segment, sealed: list[NDArray]) -> bool:
        """Take a sealed segment's keys from its index file, to be merged; False where that can't be understood."""
        content = _try_often(lambda: read_file(join_uri(self.folder, name.removesuffix(_SEGMENT) + _SEAL)))
        try:
            head, _, table = (content or b"").partition(b"\n")
            told = orjson.loads(head)
            keys = np.frombuffer(table, SEALED_DTYPE)
            if len(keys) != told["answers"]:
                return False
            asked, answered = int(told["in"]), int(told["out"])
        except (ValueError, KeyError, TypeError):
            return False
        rows = np.empty(len(keys), INDEX_DTYPE)
        rows["key"] = np.frombuffer(keys["key"].tobytes(), ">u8")[::2]
        rows["segment"], rows["offset"] = segment.number, keys["offset"]
        sealed.append(rows)
        self._add_spent(segment.ledger, asked, answered)
        segment.is_sealed = True
        return True

    def _read_growth(self, name: str, segment: _Segment) -> None:
        uri = join_uri(self.folder, name)
        if self._is_local:
            try:
                with local_path(uri).open("rb") as stream:
                    stream.seek(segment.read_bytes)
                    content = stream.read()
            except FileNotFoundError:
                return
        else:
            content = (_try_often(lambda: read_file(uri)) or b"")[segment.read_bytes :]
        start = 0
        while (end := content.find(b"\n", start)) >= 0:
            self._take_line(content[start:end], segment, segment.read_bytes + start)
            start = end + 1
        segment.read_bytes += start

    def _take_line(self, line: bytes, segment: _Segment, offset: int) -> None:
        try:
            row = orjson.loads(line)
            key = bytes.fromhex(row["key"]) if "key" in row else None
            asked, answered = int(row["in"]), int(row["out"])
        except (ValueError, KeyError, TypeError):
            return  # torn, or not ours
        if key is not None and len(key) == KEY_BYTES:
            self._add_key(key, segment.number, offset)
        self._add_spent(segment.ledger, asked, answered)

    def _add_spent(self, ledger: str, asked: int, answered: int) -> None:
        spent = self._spent.setdefault(ledger, [0, 0])
        spent[0] += asked
        spent[1] += answered

    # -- ending ------------------------------------------------------------------------------------------------------------------

    def seal(self) -> None:
        """End this process's segments, each with its index file; the next answer begins a new one."""
        with self._lock:
            for ledger in list(self._writers):
                self._seal(ledger)

    def _seal(self, ledger: str) -> None:
        writer = self._writers[ledger]
        self._save(writer)
        head = {"answers": len(writer.entries), "in": writer.tokens[0], "out": writer.tokens[1]}
        table = np.array(writer.entries, SEALED_DTYPE).tobytes()
        uri = join_uri(self.folder, writer.name.removesuffix(_SEGMENT) + _SEAL)
        _try_often(lambda: write_file(uri, orjson.dumps(head) + b"\n" + table))
        if writer.stream is not None:
            os.close(writer.stream)
        del self._writers[ledger]

    def is_gone(self) -> bool:
        """Whether somebody removed what this object has written (a cleaned folder): it must not be used on."""
        if not self._is_local:
            return False
        with self._lock:
            return any(not local_path(join_uri(self.folder, w.name)).exists() for w in self._writers.values())

    def close(self) -> None:
        """Seal, and let go of files."""
        with self._lock:
            if self.is_gone():
                for writer in self._writers.values():
                    if writer.stream is not None:
                        os.close(writer.stream)
                self._writers.clear()
            self.seal()
            while self._files:
                os.close(self._files.popitem()[1])


def _half(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _read_kept(line: bytes, key: bytes) -> Kept | None:
    try:
        row = orjson.loads(line)
        if row.get("key") != key.hex():
            return None
        vector = np.frombuffer(base64.b64decode(row["vector"]), "<f4").astype(np.float32) if "vector" in row else None
        return Kept(row.get("text", ""), row.get("finish", "stop"), int(row["in"]), int(row["out"]), vector)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _try_often(action: Callable[[], Any]) -> Any:
    """Shared storages have short troubles."""
    for attempt in range(1, _TRIES + 1):
        try:
            return action()
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(str(error)) from error
            if attempt == _TRIES:
                raise
            time.sleep(_RETRY_SECONDS * attempt)
    raise AssertionError("unreachable")


# -- one cache a folder and process --------------------------------------------------------------------------------------------

_CACHES: dict[tuple[int, str], AnswerCache] = {}
_CACHES_LOCK = threading.Lock()


def open_cache(folder: str) -> AnswerCache:
    """This process's cache of a folder: kept from one Asker to the next. On a disk it is sealed when the process ends."""
    key = (os.getpid(), str(Path(folder).absolute()) if is_local(folder) else folder)
    with _CACHES_LOCK:
        cache = _CACHES.get(key)
        if cache is not None and cache.is_gone():
            _CACHES.pop(key).close()
            cache = None
        if cache is None:
            cache = _CACHES[key] = AnswerCache(folder)
        return cache


def close_caches() -> None:
    """Seal what this process has open."""
    with _CACHES_LOCK:
        for key in [k for k in _CACHES if k[0] == os.getpid()]:
            with suppress(StorageError, NoSpaceError):
                _CACHES.pop(key).close()


def _close_local_caches() -> None:
    """At a process's end an object store's client may not work any more: its segments are saved, and are read without an index file."""
    for key in [k for k in _CACHES if k[0] == os.getpid() and is_local(k[1])]:
        with suppress(StorageError, NoSpaceError):
            _CACHES.pop(key).close()


atexit.register(_close_local_caches)

"""What format a file has, guessed from its first rows, with a sentence that says what was guessed and from what. Reads no more than those."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from llamero.data.archives import is_archive, read_members
from llamero.data.errors import DataError
from llamero.data.rows import RawRow, read_rows
from llamero.spec.job import ColumnMapping, DataFormat
from llamero.storage import READ_BLOCK_BYTES, StorageError, open_uri

_ROWS: Final = 20
_PROMPTS: Final = ("instruction", "prompt", "question", "query", "input", "problem", "title", "text")
_ANSWERS: Final = ("output", "response", "answer", "completion", "chosen", "target", "solution", "answers", "label")
_INPUTS: Final = ("input", "context", "passage")


@dataclass(frozen=True)
class Guess:
    """How a file is read, and why. `columns` for `records` alone."""

    format: DataFormat
    sentence: str
    columns: ColumnMapping | None = None


def guess_format(uri: str, allow_http: bool = False) -> Guess:
    """The format of a file. Raises DataError where it can't be told, StorageError where it can't be read."""
    name = uri.split("?", 1)[0].rsplit("/", 1)[-1]
    try:
        head, rows = _read_head(uri, name, allow_http)
    except (EOFError, OSError) as error:
        raise StorageError(f"{uri} can't be read: {error}") from error
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"<?xml", b"<posts", b"<row ")):
        return _guess(name, DataFormat.STACKEXCHANGE, "it is XML with posts")
    if not text.startswith((b"{", b"[")) and b"__eou__" in head:
        return _guess(name, DataFormat.DIALOG, "its lines hold turns ended by `__eou__`")
    objects = [row for row in rows if isinstance(row, dict)]
    if not objects:
        raise DataError(
            f"{name}: no format can be guessed, since none of its first rows is an object with named fields: give --format "
            f"({', '.join(DataFormat)})."
        )
    return _guess_objects(name, objects)


def _read_head(uri: str, name: str, allow_http: bool) -> tuple[bytes, list[Any]]:
    """The first bytes, and the first rows as JSON values; of an archive those of its first member that has any."""
    with open_uri(uri, allow_http=allow_http) as stream:
        if not is_archive(name):
            return _read_stream(stream, name)
        for member in read_members(stream, name):
            if member.stream is not None:
                head, rows = _read_stream(member.stream, member.name)
                if head:
                    return head, rows
    return b"", []


def _read_stream(stream: Any, name: str) -> tuple[bytes, list[Any]]:
    with tempfile.TemporaryFile() as spool:
        # A Parquet file's directory stands at its end; of all else the beginning is enough.
        head = stream.read1(READ_BLOCK_BYTES) if hasattr(stream, "read1") else stream.read(READ_BLOCK_BYTES)
        spool.write(head)
        if head.startswith(b"PAR1"):
            while block := stream.read(READ_BLOCK_BYTES):
                spool.write(block)
        spool.seek(0)
        return head[:65536], list(islice(_read_values(spool, name), _ROWS))


def _read_values(stream: Any, name: str) -> Iterator[Any]:
    for row in read_rows(stream, name):
        if isinstance(row, RawRow):
            try:
                yield orjson.loads(row.json)
            except orjson.JSONDecodeError:
                yield None


def _guess_objects(name: str, rows: Sequence[Mapping[str, Any]]) -> Guess:
    def holds(key: str, kind: type) -> bool:
        return sum(isinstance(row.get(key), kind) for row in rows) * 2 > len(rows)

    if holds("conversations", list):
        return _guess(name, DataFormat.SHAREGPT, "its rows have `conversations`")
    if holds("messages", list):
        return _guess(name, DataFormat.MESSAGES, "its rows have `messages`")
    if holds("instruction", str) and holds("instances", list):
        return _guess(name, DataFormat.SEED_TASKS, "its rows have `instruction` and `instances`")
    if holds("instruction", str) and holds("output", str):
        return _guess(name, DataFormat.ALPACA, "its rows have `instruction` and `output`")
    if any("PostTypeId" in row for row in rows):
        return _guess(name, DataFormat.STACKEXCHANGE, "its rows have `PostTypeId`")
    keys = [key for key in rows[0] if any(row.get(key) not in (None, "", [], {}) for row in rows)]
    prompt = next((key for key in _PROMPTS if key in keys), None)
    answer = next((key for key in _ANSWERS if key in keys and key != prompt), None)
    if prompt is None or answer is None:
        raise DataError(
            f"{name}: no format can be guessed from the fields {', '.join(keys) or '(none)'}: give --format, or --columns such as "
            "instruction=question,output=answer."
        )
    given = next((key for key in _INPUTS if key in keys and key not in (prompt, answer)), None)
    output = f"{answer}.0" if isinstance(rows[0].get(answer), list) else answer
    columns = ColumnMapping(instruction=prompt, input=given, output=output, tags="tags" if "tags" in keys else None)
    shown = f"`{prompt}`{f' and `{given}`' if given else ''} as the prompt and `{answer}` as the answer"
    return Guess(DataFormat.RECORDS, f"{name} is read as format records, with {shown}.", columns)


def _guess(name: str, chosen: DataFormat, why: str) -> Guess:
    return Guess(chosen, f"{name} is read as format {chosen.value}, since {why}.")


def scratch_folder() -> Path:
    """A folder for what a reader spills, removed by whoever asked for it."""
    return Path(tempfile.mkdtemp(prefix="llamero-"))

"""Rows out of a byte stream, one by one: JSON arrays, JSONL, concatenated JSON, CSV, Parquet and plain lines, told apart by content.

A row that can't be read becomes a `BrokenRow`, never an exception; a stream that breaks off ends with one that says so. What
the rows mean is the readers' business.
"""

import codecs
import csv
import io
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from lzma import LZMAError
from typing import IO, Any

import orjson
from fsspec.implementations.local import LocalFileOpener

from llamero.storage import READ_BLOCK_BYTES, StorageError

MAX_ROW_BYTES = 32 << 20
"""A longer row is broken: it would not fit a context, and most likely a quote or bracket is missing."""

MAX_FIELD_CHARACTERS = 4 << 20
_HEAD_BYTES = 1 << 16
_SHOWN_BYTES = 2000
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row: its 1-based number in the file and its JSON text without line ends. `file` is set where a shard has rows of several."""

    line: int
    json: bytes
    file: str = ""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that can't be read; `detail` says why, `text` is its beginning."""

    line: int
    detail: str
    text: str = ""
    file: str = ""


Row = RawRow | BrokenRow


class BlockReader:
    """A stream's blocks. Where its compression breaks off, iteration ends and `damage` says how.

    Raises StorageError where the source itself fails (the network, the disk).
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._read = getattr(stream, "read1", stream.read)  # read1 hands out what lies before the damage
        self.damage: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                block = self._read(READ_BLOCK_BYTES)
            except (EOFError, zlib.error, LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
                self.damage = str(error)
                return
            except StorageError:
                raise
            except Exception as error:
                # gzip and bz2 tell of damage by an OSError without a number, zstd by an error of its own.
                is_damage = (isinstance(error, OSError) and error.errno is None and not _is_network_error(error)) or (
                    type(error).__name__ == "ZstdError"
                )
                if not is_damage:
                    raise StorageError(
                        f"The source can't be read to its end: {type(error).__name__}: {error}"
                    ) from error
                self.damage = str(error)
                return
            if not block:
                return
            yield block


def _is_network_error(error: BaseException) -> bool:
    """Whether the far end failed: then the file may be whole, and counting its rest as a broken row would lose it."""
    return type(error).__module__.split(".")[0] in ("aiohttp", "botocore", "aiobotocore", "huggingface_hub", "httpx")


def read_rows(stream: IO[bytes], name: str) -> Iterator[Row]:
    """The rows of a file. `name` tells CSV and TSV by its suffix; all else is told by the first bytes."""
    reader = BlockReader(stream)
    head, blocks = _peek(reader)
    if head.startswith(b"PAR1"):
        yield from _read_parquet(stream, blocks)
        return
    if fault := _find_fault(head):
        yield BrokenRow(1, fault)
        return
    if name.lower().split(".")[-1] in ("csv", "tsv") or ".csv." in name.lower() or ".tsv." in name.lower():
        rows = _read_csv(blocks)
    elif _is_one_line_each(head):
        rows = _read_json_lines(blocks)
    else:
        rows = _read_json_values(blocks)
    last = 0
    for row in rows:
        last = row.line
        yield row
    if reader.damage is not None:
        yield BrokenRow(last + 1, f"The file is cut off or damaged after row {last}: {reader.damage}")


def read_lines(stream: IO[bytes], name: str) -> Iterator[Row]:
    """Plain text, a record a line; blank lines are no records."""
    reader = BlockReader(stream)
    head, blocks = _peek(reader)
    if fault := _find_fault(head):
        yield BrokenRow(1, fault)
        return
    number = 0
    for number, line in _split_lines(blocks):
        if line is None:
            yield BrokenRow(number, f"The line is longer than {MAX_ROW_BYTES:,} bytes.")
            continue
        if not line.strip(_BLANK):
            continue
        try:
            yield RawRow(number, orjson.dumps(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            yield BrokenRow(number, f"The line is not UTF-8: {error.reason} at byte {error.start}.", show_bytes(line))
    if reader.damage is not None:
        yield BrokenRow(number + 1, f"The file is cut off or damaged after line {number}: {reader.damage}")


def show_bytes(data: bytes) -> str:
    """The beginning of broken bytes as text, for a person to find the place."""
    return data[:_SHOWN_BYTES].decode("utf-8", "replace")


_PACKED = {
    b"\x1f\x8b\x08": "gz",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}
_LEAST_SAMPLE_BYTES = 512
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def _find_fault(head: bytes) -> str:
    """Why a file that begins so holds no text at all; empty where it does."""
    packing = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        packing = "bz2"
    if packing is not None:
        return f"The file is packed, though its name does not say so: rename it to end in .{packing}."
    if len(head) >= _LEAST_SAMPLE_BYTES and head.count(b"\0", 0, 4096) * 10 > len(head[:4096]):
        return "The file is no text: it is full of NUL bytes."
    return ""


def _find_wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or UTF-16 by the NULs that it puts beside each Latin letter; None for all else."""
    if head.startswith(_UTF_32):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = head[:2048]
    if len(sample) >= 16 and sample.count(b"\0") * 3 > len(sample) and b"\0\0" not in sample:
        return "utf-16-le" if not sample[::2].count(b"\0") else "utf-16-be" if not sample[1::2].count(b"\0") else None
    return None


def _rewrite(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Blocks of wide characters as UTF-8; what is none becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _peek(reader: BlockReader) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and all blocks, as UTF-8 without a byte-order mark."""
    blocks = iter(reader)
    taken: list[bytes] = []
    size = 0
    for block in blocks:
        taken.append(block)
        size += len(block)
        if size >= _HEAD_BYTES:
            break
    head = b"".join(taken)
    if (encoding := _find_wide(head)) is not None:
        blocks = _rewrite(chain([head], blocks), encoding)
        head = next(blocks, b"")
    head = head.removeprefix(codecs.BOM_UTF8)
    return head, chain([head], blocks)


def _is_one_line_each(head: bytes) -> bool:
    """Whether JSON text is JSONL: no array, and the first lines hold a whole object each (one that does, unindented, is enough)."""
    text = head.lstrip(_BLANK)
    if text.startswith(b"["):
        return False
    if not text.startswith(b"{"):
        return True
    lines = text.split(b"\n")
    if len(lines) == 1:
        return True
    return any(line.startswith(b"{") and _is_json_object(line) for line in lines[:50])


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _split_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without their ends; None for one that is longer than MAX_ROW_BYTES."""
    number = 0
    carry: list[bytes] = []
    carried = 0
    for block in blocks:
        lines = block.split(b"\n")
        if len(lines) > 1:
            number += 1
            yield number, None if carried + len(lines[0]) > MAX_ROW_BYTES else b"".join([*carry, lines[0]])
            for line in lines[1:-1]:
                number += 1
                yield number, None if len(line) > MAX_ROW_BYTES else line
            carry, carried = [], 0
        carried += len(lines[-1])
        if carried <= MAX_ROW_BYTES:
            carry.append(lines[-1])
        else:
            carry = []
    if carried:
        yield number + 1, None if carried > MAX_ROW_BYTES else b"".join(carry)


def _read_json_lines(blocks: Iterable[bytes]) -> Iterator[Row]:
    for number, line in _split_lines(blocks):
        if line is None:
            yield BrokenRow(number, f"The line is longer than {MAX_ROW_BYTES:,} bytes.")
        elif text := line.strip(_BLANK):
            yield RawRow(number, text.replace(b"\r", b" "))


# A string (also one that the buffer cuts off: a lone quote), a bracket or a comma; all else is skipped.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)


def _read_json_values(blocks: Iterator[bytes]) -> Iterator[Row]:
    """Elements of one top-level array, or top-level values one after the other, cut at brackets without being parsed.

    A broken element costs itself alone, as long as its quotes and brackets pair up.
    """
    buffer = b""
    position = 0  # scanned up to here
    start = 0  # of the current element
    depth = 0
    base = -1  # depth of elements: 1 within an array, 0 for values in a row
    closed = False
    number = 0
    for block in blocks:
        buffer = buffer[start:] + block
        position -= start
        start = 0
        if base < 0:
            text = buffer.lstrip(_BLANK)
            if not text:
                continue
            base = 1 if text.startswith(b"[") else 0
            if base:
                start = position = len(buffer) - len(text) + 1
                depth = 1
        for match in _STRUCTURE.finditer(buffer, position):
            token = match.group()
            if token == b'"':
                position = match.start()
                break
            position = match.end()
            if len(token) > 1:
                continue
            if token in b"{[":
                depth += 1
                continue
            if token == b",":
                if depth != base or base == 0:
                    continue
                end, following = match.start(), match.end()
            else:
                depth -= 1
                if depth > base or (base == 1 and depth == 1):
                    continue
                end = match.start() if base else match.end()
                following = match.end()
            if base == 1 and depth == 0 and token != b"]":
                depth = 1  # a stray closing brace: the element that holds it is broken, the array goes on
                continue
            piece = buffer[start:end].strip(_BLANK)
            start = following
            if base == 0:
                piece = piece.lstrip(_BLANK + b",")
                depth = 0
            closed = base == 1 and depth == 0
            if piece:
                number += 1
                yield _make_json_row(number, piece)
            if closed:
                break
        else:
            position = max(position, len(buffer))
        if closed:
            rest = b"".join([buffer[start:], *_next_block(blocks)])[:MAX_ROW_BYTES].strip(_BLANK)
            if rest:
                yield BrokenRow(number + 1, "There is text after the end of the JSON array.", show_bytes(rest))
            return
        if len(buffer) - start > MAX_ROW_BYTES:
            yield BrokenRow(
                number + 1,
                f"Row {number + 1} is longer than {MAX_ROW_BYTES:,} bytes, or a quote or bracket is missing; the rest of the file can't be read.",
                show_bytes(buffer[start:]),
            )
            return
    rest = buffer[start:].strip(_BLANK)
    if base == 1:
        yield BrokenRow(
            number + 1, f"The JSON array is not closed: the file is cut off after row {number}.", show_bytes(rest)
        )
    elif rest.strip(b","):
        yield BrokenRow(number + 1, f"The file is cut off within row {number + 1}.", show_bytes(rest))


def _next_block(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The first of the blocks that were not read yet; the others don't matter."""
    for block in blocks:
        yield block
        return


def _make_json_row(number: int, piece: bytes) -> Row:
    if len(piece) > MAX_ROW_BYTES:
        return BrokenRow(number, f"The row is longer than {MAX_ROW_BYTES:,} bytes.", show_bytes(piece))
    return RawRow(number, piece.replace(b"\n", b" ").replace(b"\r", b" "))


def _read_csv(blocks: Iterable[bytes]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines = (((line or b"") + b"\n").decode("utf-8", "surrogateescape") for _, line in _split_lines(blocks))
    header_line = next((line for line in lines if line.strip()), None)
    if header_line is None:
        return
    delimiter = max((",", "\t", ";"), key=header_line.count)
    table = csv.reader(chain([header_line], lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            fields = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield BrokenRow(number, f"The row is no CSV: {error}.")
            continue
        if header is None:
            header = [field.strip() for field in fields]
            continue
        if not fields:
            continue
        number += 1
        yield _make_csv_row(number, header, fields)


def _make_csv_row(number: int, header: list[str], fields: list[str]) -> Row:
    text = ",".join(fields)[:_SHOWN_BYTES].encode("utf-8", "surrogateescape")
    if len(fields) != len(header):
        return BrokenRow(number, f"The row has {len(fields)} fields, the header {len(header)}.", show_bytes(text))
    try:
        return RawRow(number, orjson.dumps(dict(zip(header, fields, strict=True))))
    except orjson.JSONEncodeError:  # surrogates: bytes that were no UTF-8
        return BrokenRow(number, "The row is not UTF-8.", show_bytes(text))


def _read_parquet(stream: IO[bytes], blocks: Iterable[bytes]) -> Iterator[Row]:
    """Rows of a Parquet file in batches. One that can't be sought in is spooled to disk first."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    with tempfile.TemporaryFile() as spool:
        file: Any = stream
        if not _is_plain_file(stream):
            for block in blocks:
                spool.write(block)
            file = spool
        try:
            file.seek(0)
            table = parquet.ParquetFile(file)
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield _make_parquet_row(number, row)
        except (pyarrow.ArrowException, EOFError, zlib.error, LZMAError, UnicodeDecodeError) as error:
            yield BrokenRow(number + 1, f"The Parquet file can't be read after row {number}: {error}")
        except OSError as error:
            if error.errno is not None:
                raise
            yield BrokenRow(number + 1, f"The Parquet file can't be read after row {number}: {error}")


def _is_plain_file(stream: IO[bytes]) -> bool:
    """Whether the stream is a file of this machine as it stands: one that is decompressed can be sought in only by reading it all."""
    return isinstance(stream, (io.BufferedReader, io.BytesIO, LocalFileOpener)) and stream.seekable()


def _make_parquet_row(number: int, row: dict[str, Any]) -> Row:
    try:
        return RawRow(number, orjson.dumps(row, default=str))
    except (orjson.JSONEncodeError, ValueError) as error:
        return BrokenRow(number, f"The row can't be read: {error}.")

"""Stack Exchange: a dump's Posts.xml (or its posts as JSONL), each question joined with its highest-voted answer.

A dump has no useful order and does not fit in memory: posts are spilled to disk by ranges of question ids, then each range is
joined by itself, so that memory holds one range and records come out in order of their ids.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

import orjson

from llamero.data.readers.draft import Draft, RowError, make_exchange, need_object, read_tags, read_text
from llamero.data.rows import BlockReader, BrokenRow, RawRow, Row, read_rows, show_bytes
from llamero.spec.records import RejectionReason

QUESTIONS_PER_RANGE = 4096
_BUFFER_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
_QUESTION, _ANSWER = "1", "2"
_SCORES = (("questionScore", "score"), ("sourceScore", "answerScore"))  # names of spec.steps.SCORES, by the row's


@dataclass(frozen=True, slots=True)
class _Post:
    """One row of the dump, with the attributes that the join needs."""

    line: int
    attributes: dict[str, str]


class _EntityRefused(Exception):
    """The file declares entities: their expansion can fill any memory."""


def read_questions(stream: IO[bytes], name: str, scratch: Path) -> Iterator[Row]:
    """A row for each question, in order of ids: {title, body, tags, score, answer, answerId}; `answer` is null where there is none.

    Broken rows come first, answers to questions that the file lacks last in their range. Posts of other kinds (tag wikis) are no
    records.
    """
    spill = _Spill(scratch)
    for item in _read_posts(stream, name):
        if isinstance(item, BrokenRow):
            yield item
            continue
        broken = _place_post(spill, item)
        if broken is not None:
            yield broken
    spill.flush()
    for path in spill.list_ranges():
        yield from _join_range(path)


def parse_question(row: Any) -> Draft:
    """Title → instruction, body → input, answer → output; votes → `meta["scores"]`.

    Raises RowError (unanswered, with what was asked).
    """
    row = need_object(row)
    if row.get("answerId") is not None and row.get("answer") is None:
        raise RowError(RejectionReason.MALFORMED, f"The best answer ({row['answerId']}) has no Body.")
    meta = {k: row[k] for k in ("score", "answerId", "answerScore") if row.get(k) is not None}
    scores = {name: float(row[key]) for name, key in _SCORES if row.get(key) is not None}
    draft = make_exchange(
        read_text(row, "title"),
        read_text(row, "body"),
        read_text(row, "answer", required=False),
        tags=read_tags(row.get("tags")),
        meta=meta | {"scores": scores} if scores else meta,
    )
    if row.get("answer") is None:
        raise RowError(RejectionReason.UNANSWERED, "Nobody answered the question.", draft)
    return draft


def _read_posts(stream: IO[bytes], name: str) -> Iterator[_Post | BrokenRow]:
    reader = BlockReader(stream)
    blocks = iter(reader)
    first = next(blocks, b"")
    if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        yield from _read_json_posts(_Chained(chain([first], blocks)), name)
    else:
        line = 0
        for item in _read_xml_posts(chain([first], blocks)):
            line = item.line
            yield item
        if reader.damage is None:
            return
        yield BrokenRow(line + 1, f"The file is cut off or damaged after line {line}: {reader.damage}")
        return
    if reader.damage is not None:
        yield BrokenRow(1, f"The file is cut off or damaged: {reader.damage}")


class _Chained:
    """Blocks as a stream that is read block by block."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)

    def read(self, size: int = -1) -> bytes:
        return next(self._blocks, b"")


def _read_json_posts(stream: Any, name: str) -> Iterator[_Post | BrokenRow]:
    for row in read_rows(stream, name):
        if isinstance(row, BrokenRow):
            yield row
            continue
        try:
            value = orjson.loads(row.json)
        except orjson.JSONDecodeError as error:
            yield BrokenRow(row.line, f"The row is no JSON: {error}", show_bytes(row.json))
            continue
        if not isinstance(value, dict):
            yield BrokenRow(row.line, "The row is no object.", show_bytes(row.json))
            continue
        tags = value.get("Tags")
        if isinstance(tags, list):
            value["Tags"] = ",".join(str(t) for t in tags)
        yield _Post(row.line, {k: str(v) for k, v in value.items() if v is not None})


def _split_pieces(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends and numbers; a line longer than a piece comes in several with the same number."""
    number, carry = 1, b""
    for block in blocks:
        lines = (carry + block).split(b"\n")
        carry = lines.pop()
        for line in lines:
            yield number, line + b"\n"
            number += 1
        if len(carry) > _PIECE_BYTES:
            yield number, carry
            carry = b""
    if carry:
        yield number, carry


def _read_xml_posts(blocks: Iterable[bytes]) -> Iterator[_Post | BrokenRow]:
    """The `<row …/>` elements. After a row that is no XML, reading goes on at the next line that begins one."""
    found: list[dict[str, str]] = []
    parser = _start_parser(found)
    is_lost = False
    number = 1
    for number, piece in _split_pieces(blocks):
        if is_lost:
            if not piece.lstrip().startswith(b"<row "):
                continue
            parser = _start_parser(found)
            parser.Parse(b"<posts>", False)
        broken: BrokenRow | None = None
        try:
            parser.Parse(piece, False)
        except expat.ExpatError as error:
            broken = BrokenRow(number, f"The row is no XML: {expat.ErrorString(error.code)}.", show_bytes(piece))
        except _EntityRefused:
            yield BrokenRow(
                number, "The file declares XML entities, which are refused; nothing of it is read.", show_bytes(piece)
            )
            return
        is_lost = broken is not None
        yield from (_Post(number, attributes) for attributes in found)
        found.clear()
        if broken is not None:
            yield broken
    if is_lost:
        return
    try:
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        yield BrokenRow(number, f"The file is cut off: {expat.ErrorString(error.code)}.")


def _start_parser(found: list[dict[str, str]]) -> expat.XMLParserType:
    parser = expat.ParserCreate()

    def begin(tag: str, attributes: dict[str, str]) -> None:
        if tag == "row":
            found.append(attributes)

    def refuse(*_: Any) -> None:
        raise _EntityRefused

    parser.StartElementHandler = begin
    parser.EntityDeclHandler = refuse
    return parser


_KEPT = ("Id", "Score", "AcceptedAnswerId", "Title", "Body", "Tags")


def _place_post(spill: "_Spill", post: _Post) -> BrokenRow | None:
    """Spill a question or an answer to the range of its question; a BrokenRow where it lacks what it needs."""
    attributes = post.attributes
    kind = attributes.get("PostTypeId")
    if kind is None:
        return BrokenRow(post.line, "The post has no PostTypeId.", str(attributes)[:500])
    if kind not in (_QUESTION, _ANSWER):
        return None
    numbers: dict[str, int] = {}
    for key in ("Id", "Score", "AcceptedAnswerId", "ParentId"):
        text = attributes.get(key, "")
        if not text and key not in ("Id", "ParentId" if kind == _ANSWER else "Id"):
            continue
        if not text.lstrip("-").isdecimal() or len(text) > 18:
            return BrokenRow(post.line, f"The post's {key} is no number.", str(attributes)[:500])
        numbers[key] = int(text)
    question = numbers["ParentId"] if kind == _ANSWER else numbers["Id"]
    row: dict[str, Any] = {"kind": kind, "question": question, "line": post.line, **numbers}
    row["body"] = attributes.get("Body")
    if kind == _QUESTION:
        row |= {"title": attributes.get("Title"), "tags": attributes.get("Tags", "")}
    try:
        spill.add(question, orjson.dumps(row))
    except orjson.JSONEncodeError:
        return BrokenRow(post.line, "The post is not UTF-8.")
    return None


class _Spill:
    """Posts on disk by ranges of question ids, behind one bounded buffer; no file stays open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._buffers: dict[int, list[bytes]] = {}
        self._buffered = 0
        self._ranges: set[int] = set()

    def add(self, question: int, row: bytes) -> None:
        key = question // QUESTIONS_PER_RANGE
        self._ranges.add(key)
        self._buffers.setdefault(key, []).append(row)
        self._buffered += len(row) + 64
        if self._buffered > _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        for key, rows in self._buffers.items():
            with self._path(key).open("ab") as stream:
                stream.write(b"\n".join(rows) + b"\n")
        self._buffers.clear()
        self._buffered = 0

    def list_ranges(self) -> Iterator[Path]:
        for key in sorted(self._ranges):
            yield self._path(key)

    def _path(self, key: int) -> Path:
        return self._folder / f"questions-{key}.jsonl"


def _join_range(path: Path) -> Iterator[Row]:
    """The questions of one range with their best answers; the file is deleted after."""
    questions: dict[int, dict[str, Any]] = {}
    twice: list[BrokenRow] = []
    with path.open("rb") as stream:
        for line in stream:
            row = orjson.loads(line)
            if row["kind"] != _QUESTION:
                continue
            if row["Id"] in questions:
                twice.append(
                    BrokenRow(row["Id"], f"The question's Id {row['Id']} stands in the file twice.", row["title"] or "")
                )
            else:
                questions[row["Id"]] = row
    best: dict[int, dict[str, Any]] = {}
    orphans: list[BrokenRow] = []
    with path.open("rb") as stream:
        for line in stream:
            row = orjson.loads(line)
            if row["kind"] != _ANSWER:
                continue
            question = questions.get(row["question"])
            if question is None:
                orphans.append(
                    BrokenRow(row["Id"], f"The question {row['question']} of this answer is not in the file.")
                )
                continue
            known = best.get(row["question"])
            if known is None or _rank(row, question) < _rank(known, question):
                best[row["question"]] = row
    path.unlink()
    for number in sorted(questions):
        yield _make_row(questions[number], best.get(number))
    yield from twice
    yield from orphans


def _rank(answer: dict[str, Any], question: dict[str, Any]) -> tuple[int, bool, int]:
    """Smallest is best: the highest score, then the accepted one, then the lowest id."""
    return -answer.get("Score", 0), answer["Id"] != question.get("AcceptedAnswerId"), answer["Id"]


def _make_row(question: dict[str, Any], answer: dict[str, Any] | None) -> RawRow:
    row = {
        "title": question["title"],
        "body": question["body"],
        "tags": question["tags"],
        "score": question.get("Score"),
        "answer": answer["body"] if answer else None,
        "answerId": answer["Id"] if answer else None,
        "answerScore": answer.get("Score") if answer else None,
    }
    return RawRow(question["Id"], orjson.dumps(row))

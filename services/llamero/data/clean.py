"""One shard of raw rows made into candidates: parsed, cleaned, tokenised, hashed and measured, or rejected with a reason.

Knows nothing of other shards: what is the same as a record elsewhere, capped or held out is decided by `selection`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import orjson
from transformers import PreTrainedTokenizerBase

from llamero.data.chunks import Cut, Example, cut_record
from llamero.data.content import hash_content, hash_prompt, show_turns
from llamero.data.lengths import LengthCounts, Statistics, find_domain
from llamero.data.normalise import normalise_draft, refuse_empty
from llamero.data.readers import READERS
from llamero.data.readers.draft import Draft, RowError
from llamero.data.rows import BrokenRow, RawRow, Row, show_bytes
from llamero.data.turns import arrange_turns
from llamero.model.templates import Encoded, TemplateError, encode_conversations
from llamero.spec.job import DataSource
from llamero.spec.records import MAX_REJECTED_TEXT, Conversation, Message, Rejection, RejectionReason

_BATCH_RECORDS = 256


@dataclass(frozen=True)
class CleanOptions:
    """What decides a shard's candidates besides its rows."""

    source: DataSource
    source_name: str
    file: str
    system: str | None
    sequence_length: int
    long_records: Literal["chunk", "truncate", "reject"]
    domains: dict[str, list[str]]


@dataclass(frozen=True)
class Candidate:
    """A record that may be kept: its examples as written, their tokens, its hashes and its lengths before it was cut."""

    raw_row: int
    line: int
    conversations: list[Conversation]
    encoded: list[Encoded]
    content_hash: bytes
    prompt_hash: bytes
    input_length: int
    output_length: int
    domain: str
    dropped_pairs: int = 0


@dataclass(frozen=True)
class Rejected:
    """A rejection, and the place of its row in the shard."""

    raw_row: int
    rejection: Rejection


@dataclass
class CleanCounts:
    """What was read: rows, their lengths by domain, and the whole lengths of records that were rejected as too long."""

    read: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    too_long: LengthCounts = field(default_factory=LengthCounts)


@dataclass(frozen=True)
class _Parsed:
    """A row on its way: `error` says why it is rejected, though its lengths are still measured."""

    raw_row: int
    line: int
    draft: Draft
    error: RowError | None


def clean_rows(
    rows: Iterable[Row], options: CleanOptions, tokenizer: PreTrainedTokenizerBase, counts: CleanCounts
) -> Iterator[Candidate | Rejected]:
    """Each row's candidate or rejection, in the rows' order; `counts` is added to."""
    numbered = enumerate(rows)
    while batch := list(islice(numbered, _BATCH_RECORDS)):
        parsed = [_parse_row(number, row, options) for number, row in batch]
        counts.read += len(batch)
        good = [p for p in parsed if isinstance(p, _Parsed)]
        encoded = iter(
            encode_conversations(
                tokenizer,
                [(_with_system(p.draft, options), p.draft.input or None) for p in good],
                errors="return",
            )
        )
        for row in parsed:
            if isinstance(row, Rejected):
                counts.statistics.of(find_domain((), options.domains)).samples += 1
                yield row
            else:
                yield _finish_row(row, next(encoded), options, tokenizer, counts)


def _parse_row(number: int, row: Row, options: CleanOptions) -> _Parsed | Rejected:
    if isinstance(row, BrokenRow):
        return Rejected(number, _reject(options, row.line, RejectionReason.MALFORMED, row.detail, row.text))
    reader = READERS[options.source.format]
    html = "always" if reader.is_html else options.source.html
    draft: Draft | None = None
    try:
        draft = reader.parse(_load_json(row), options.source)
        draft = Draft(arrange_turns(draft.messages), draft.input, draft.tags, draft.meta)
        draft = normalise_draft(draft, html)
        refuse_empty(draft)
        return _Parsed(number, row.line, draft, None)
    except RowError as error:
        if error.draft is None:
            return Rejected(number, _reject(options, row.line, error.reason, error.detail, show_bytes(row.json)))
        shown = error.draft if draft is not None else normalise_draft(error.draft, html)
        return _Parsed(number, row.line, shown, error)


def _load_json(row: RawRow) -> Any:
    try:
        return orjson.loads(row.json)
    except orjson.JSONDecodeError as error:
        return _load_odd_json(row.json, error)


def _load_odd_json(data: bytes, error: orjson.JSONDecodeError) -> Any:
    """What orjson refuses and Python's reader takes: halves of surrogate pairs, NaN, huge numbers. Raises RowError."""
    import json

    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RowError(RejectionReason.MALFORMED, f"The row is no JSON: {error}.") from None


def _with_system(draft: Draft, options: CleanOptions) -> tuple[Message, ...]:
    if options.system and draft.messages[0].role != "system":
        return (Message("system", options.system), *draft.messages)
    return draft.messages


def _finish_row(
    row: _Parsed,
    encoded: Encoded | TemplateError,
    options: CleanOptions,
    tokenizer: PreTrainedTokenizerBase,
    counts: CleanCounts,
) -> Candidate | Rejected:
    domain = find_domain(row.draft.tags, options.domains)
    if isinstance(encoded, TemplateError):
        counts.statistics.of(domain).samples += 1
        error = row.error or RowError(RejectionReason.BAD_TURNS, str(encoded))
        return Rejected(row.raw_row, _reject(options, row.line, error.reason, error.detail, _show(row.draft)))
    output_length = int(encoded.mask.sum())
    input_length = len(encoded.ids) - output_length
    counts.statistics.of(domain).add(input_length, output_length)
    try:
        if row.error is not None:
            raise row.error
        messages = _with_system(row.draft, options)
        cut = cut_record(
            messages,
            encoded,
            options.sequence_length,
            options.long_records,
            lambda pieces: encode_conversations(tokenizer, [(piece, None) for piece in pieces]),
        )
    except (RowError, TemplateError) as error:
        reason = error.reason if isinstance(error, RowError) else RejectionReason.BAD_TURNS
        if reason == RejectionReason.TOO_LONG:
            counts.too_long.add(len(encoded.ids))
        return Rejected(row.raw_row, _reject(options, row.line, reason, str(error), _show(row.draft)))
    content_hash = hash_content(row.draft.messages, row.draft.input)
    return Candidate(
        raw_row=row.raw_row,
        line=row.line,
        conversations=_build_conversations(row, cut, content_hash.hex(), options),
        encoded=[e.encoded for e in cut.examples],
        content_hash=content_hash,
        prompt_hash=hash_prompt(row.draft.messages, row.draft.input),
        input_length=input_length,
        output_length=output_length,
        domain=domain,
        dropped_pairs=cut.dropped_pairs,
    )


def _build_conversations(row: _Parsed, cut: Cut, identity: str, options: CleanOptions) -> list[Conversation]:
    meta = dict(row.draft.meta)
    if row.draft.input:
        meta["input"] = row.draft.input
    if cut.dropped_pairs:
        meta["droppedPairs"] = cut.dropped_pairs
    is_chunked = len(cut.examples) > 1 or cut.dropped_pairs > 0

    def build(number: int, example: Example) -> Conversation:
        return Conversation(
            id=f"{identity}_{example.first_turn}" if is_chunked else identity,
            source=options.source_name,
            file=options.file,
            line=row.line,
            messages=example.messages,
            tags=row.draft.tags,
            chunk=number if is_chunked else None,
            meta=meta | {"truncated": True} if example.is_truncated else meta,
        )

    return [build(number, example) for number, example in enumerate(cut.examples)]


def _reject(options: CleanOptions, line: int, reason: str, detail: str, text: str) -> Rejection:
    return Rejection(options.source_name, options.file, line, reason, detail, text[:MAX_REJECTED_TEXT])


def _show(draft: Draft) -> str:
    return show_turns(draft.messages, draft.input)

"""One shard of raw rows made into candidates: parsed, cleaned, measured, put through the first steps and hashed; or rejected with a reason.

Knows nothing of other shards: what is the same as a record elsewhere, capped or held out is decided by `selection`, and what becomes of a
record that is too long when it is written.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson

from llamero.data.applying import Applier, Outcome
from llamero.data.content import hash_content, hash_prompt
from llamero.data.lengths import Statistics, find_domain
from llamero.data.measure import Measure, Measured, Unmeasured
from llamero.data.normalise import normalise_draft, refuse_empty
from llamero.data.readers import READERS
from llamero.data.readers.draft import Draft, RowError
from llamero.data.rejections import PARSE, Tally, describe_rejected
from llamero.data.rows import BrokenRow, RawRow, Row, show_bytes
from llamero.data.steps.record import Record
from llamero.data.turns import arrange_turns
from llamero.spec.job import DataSource
from llamero.spec.records import MAX_REJECTED_TEXT, Message, RejectionReason

_BATCH_RECORDS = 512


@dataclass(frozen=True)
class CleanOptions:
    """What decides a shard's candidates besides its rows."""

    source: DataSource
    source_name: str
    file: str
    system: str | None
    domains: dict[str, list[str]]
    hashes_first: bool = False


@dataclass(frozen=True)
class Candidate:
    """A record that may be kept, its lengths and tokens, and its hashes."""

    record: Record
    measured: Measured
    content_hash: bytes
    prompt_hash: bytes


@dataclass(frozen=True)
class Rejected:
    """A line of rejected.jsonl, its row's place in the shard among it."""

    line: dict[str, Any]


@dataclass
class CleanCounts:
    """What was read: rows, their lengths by domain, and what the first steps did."""

    read: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class _Parsed:
    """A row on its way: `error` says why it is rejected, though its lengths are still measured."""

    record: Record
    error: RowError | None


def clean_rows(
    rows: Iterable[Row], options: CleanOptions, measure: Measure, applier: Applier, counts: CleanCounts
) -> Iterator[Candidate | Rejected]:
    """Each row's candidate or rejection, in the rows' order; `counts` is added to."""
    numbered = enumerate(rows)
    while batch := list(islice(numbered, _BATCH_RECORDS)):
        parsed = [_parse_row(number, row, options, counts) for number, row in batch]
        counts.read += len(batch)
        yield from _finish_batch(parsed, options, measure, applier, counts)


def count_rows(rows: Iterable[Row], options: CleanOptions, measure: Measure, counts: CleanCounts) -> Iterator[str]:
    """Only count the rows and their lengths into `counts`; an empty text for each record, the reason for each row that is none."""
    numbered = enumerate(rows)
    while batch := list(islice(numbered, _BATCH_RECORDS)):
        parsed = [_parse_row(number, row, options, counts) for number, row in batch]
        counts.read += len(batch)
        readable = [p for p in parsed if isinstance(p, _Parsed)]
        measured = iter(measure_records([p.record for p in readable], options.system, measure, options.hashes_first))
        for row in parsed:
            if isinstance(row, Rejected):
                counts.statistics.of(find_domain((), options.domains)).samples += 1
                yield str(row.line["reason"])
                continue
            judged = _judge_row(row, next(measured), options, counts)
            yield str(judged.line["reason"]) if isinstance(judged, Rejected) else ""


def _finish_batch(
    parsed: Sequence[_Parsed | Rejected], options: CleanOptions, measure: Measure, applier: Applier, counts: CleanCounts
) -> Iterator[Candidate | Rejected]:
    readable = [p for p in parsed if isinstance(p, _Parsed)]
    measured = iter(measure_records([p.record for p in readable], options.system, measure, options.hashes_first))
    results: list[Rejected | tuple[Record, Measured]] = []
    for row in parsed:
        if isinstance(row, Rejected):
            counts.statistics.of(find_domain((), options.domains)).samples += 1
            results.append(row)
        else:
            results.append(_judge_row(row, next(measured), options, counts))
    good = [(i, r) for i, r in enumerate(results) if not isinstance(r, Rejected)]
    if applier:
        outcomes = applier.apply([record for _, (record, _) in good], counts.tally)
    else:
        outcomes = [Outcome(record) for _, (record, _) in good]
    again = [o.record for o in outcomes if o.is_changed and o.step is None]
    anew = iter(measure_records(again, options.system, measure, options.hashes_first))
    finished = dict(zip((i for i, _ in good), outcomes, strict=True))
    for i, result in enumerate(results):
        if isinstance(result, Rejected):
            yield result
            continue
        outcome, lengths = finished[i], result[1]
        if outcome.step is not None and outcome.drop is not None:
            drop = outcome.drop
            yield Rejected(describe_rejected(outcome.record, outcome.reason, drop.detail, outcome.step, drop))
            continue
        if outcome.is_changed:
            remeasured = next(anew)
            if isinstance(remeasured, Unmeasured):
                yield _reject(outcome.record, RejectionReason.BAD_TURNS, remeasured.detail, counts)
                continue
            lengths = remeasured
        yield _build_candidate(outcome.record, lengths)


def measure_records(
    records: Sequence[Record], system: str | None, measure: Measure, has_variants: bool
) -> list[Measured | Unmeasured]:
    """The records' lengths and tokens, with the manifest's system prompt where they have none."""
    return measure.measure(
        [(with_system(r.messages, system), r.input, _identify(r) if has_variants else b"") for r in records]
    )


def _identify(record: Record) -> bytes:
    return bytes.fromhex(record.id) if record.id else hash_content(record.messages, record.input)


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The turns as they are trained: after the manifest's system prompt, where they have none of their own."""
    if system and messages[0].role != "system":
        return (Message("system", system), *messages)
    return messages


def _parse_row(number: int, row: Row, options: CleanOptions, counts: CleanCounts) -> _Parsed | Rejected:
    options = replace(options, file=row.file) if row.file else options
    if isinstance(row, BrokenRow):
        return _reject_row(number, row.line, RejectionReason.MALFORMED, row.detail, row.text, options, counts)
    reader = READERS[options.source.format]
    html = "always" if reader.is_html else options.source.html
    draft: Draft | None = None
    try:
        draft = reader.parse(_load_json(row), options.source)
        draft = Draft(arrange_turns(draft.messages), draft.input, draft.tags, draft.meta)
        draft = normalise_draft(draft, html)
        refuse_empty(draft)
        return _Parsed(_build_record(number, row.line, draft, options), None)
    except RowError as error:
        if error.draft is None:
            rejected = _reject_row(number, row.line, error.reason, error.detail, show_bytes(row.json), options, counts)
            ruled = {"rule": error.rule, "value": error.value, "threshold": error.threshold}
            rejected.line.update({name: value for name, value in ruled.items() if value is not None})
            return rejected
        shown = error.draft if draft is not None else normalise_draft(error.draft, html)
        return _Parsed(_build_record(number, row.line, shown, options), error)


def _build_record(number: int, line: int, draft: Draft, options: CleanOptions) -> Record:
    meta, scores = draft.meta, {}
    if "scores" in meta:
        meta = {name: value for name, value in meta.items() if name != "scores"}
        scores = draft.meta["scores"]
    return Record(
        number, options.source_name, options.file, line, draft.messages, draft.input, draft.tags, meta, scores
    )


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
    except UnicodeDecodeError as bad:
        raise RowError(
            RejectionReason.MALFORMED,
            f"The row is not UTF-8 (byte {bad.start}): convert the file, as by `iconv -f latin1 -t utf-8`.",
        ) from None
    except (ValueError, RecursionError):
        raise RowError(RejectionReason.MALFORMED, f"The row is no JSON: {error}.") from None


def _judge_row(
    row: _Parsed, measured: Measured | Unmeasured, options: CleanOptions, counts: CleanCounts
) -> Rejected | tuple[Record, Measured]:
    lengths = counts.statistics.of(find_domain(row.record.tags, options.domains))
    if isinstance(measured, Unmeasured):
        lengths.samples += 1
        error = row.error or RowError(RejectionReason.BAD_TURNS, measured.detail)
        return _reject(row.record, error.reason, error.detail, counts)
    lengths.add(measured.input, measured.output)
    if row.error is not None:
        return _reject(row.record, row.error.reason, row.error.detail, counts)
    return row.record, measured


def _build_candidate(record: Record, measured: Measured) -> Candidate:
    content_hash = hash_content(record.messages, record.input)
    prompt_hash = hash_prompt(record.messages, record.input)
    # Spelt out: `replace` takes several times as long, and this is done to every record.
    named = Record(
        record.row,
        record.source,
        record.file,
        record.line,
        record.messages,
        record.input,
        record.tags,
        record.meta,
        record.scores,
        content_hash.hex(),
    )
    return Candidate(named, measured, content_hash, prompt_hash)


def _reject(record: Record, reason: str, detail: str, counts: CleanCounts) -> Rejected:
    counts.tally.drop(PARSE, reason)
    return Rejected(describe_rejected(record, reason, detail))


def _reject_row(
    number: int, line: int, reason: str, detail: str, text: str, options: CleanOptions, counts: CleanCounts
) -> Rejected:
    """A row of which nothing could be read."""
    counts.tally.drop(PARSE, reason)
    place = {"source": options.source_name, "file": options.file, "line": line}
    return Rejected(place | {"reason": reason, "detail": detail, "text": text[:MAX_REJECTED_TEXT], "row": number})

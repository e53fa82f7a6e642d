"""What became of a record: found in a finished data folder, which is streamed and never held. Printing it is left to the caller."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from llamero.data.errors import DataError
from llamero.data.taskfiles import REJECTED_FILE, SIDES
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import DataResult, FunnelStep

MOST_FOUND: Final = 20
_MIN_PREFIX: Final = 4


@dataclass(frozen=True)
class Explained:
    """One record that was found, and what became of it.

    `kept`: on `side` (train, evaluation) in `part` (the file, relative to the data folder), as the examples `examples` (ids; several where
    it was cut into chunks), with `scores`, changed by the steps `changed_by`. `rejected`: for `reason`, by the step `step` (its entry in
    the funnel, None for what every preparation does) with `rule`, `value` and `threshold` where it has them, and `repeats` ({source,
    file, line, id}) where it is the same as another. `steps` are the kinds of all steps that it came past. `text` is the record as text,
    shortened for a rejected one. `detail` is a sentence that says it all.
    """

    outcome: Literal["kept", "rejected"]
    source: str
    file: str
    line: int
    id: str
    detail: str
    text: str
    side: str = ""
    part: str = ""
    examples: tuple[str, ...] = ()
    scores: dict[str, float] | None = None
    changed_by: tuple[str, ...] = ()
    reason: str = ""
    step: FunnelStep | None = None
    rule: str | None = None
    value: float | None = None
    threshold: float | None = None
    repeats: dict[str, Any] | None = None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What was found for a name; `sentence` says so where nothing was, or more than MOST_FOUND."""

    asked: str
    found: tuple[Explained, ...]
    sentence: str = ""


def explain(folder: Path, record: str) -> Explanation:
    """What became of a record of a finished data folder (one with manifest.json, rejected.jsonl, train and evaluation).

    `record` is an id, the beginning of one (4 hex digits or more), or a place: `<source>:<line>`, or `<file>:<line>` as rejected.jsonl
    and reports call it. Raises DataError where the folder holds no finished data, or `record` is neither.
    """
    result = _read_manifest(folder)
    wanted = _parse(record)
    found: list[Explained] = []
    for explained in _search(folder, wanted, result):
        found.append(explained)
        if len(found) > MOST_FOUND:
            told = f"More than {MOST_FOUND} records go by {record}; these are the first. Give more digits of the id."
            return Explanation(record, tuple(found[:MOST_FOUND]), told)
    return Explanation(record, tuple(found), "" if found else _tell_unknown(record, wanted, result))


@dataclass(frozen=True)
class _Wanted:
    """An id's beginning, or a place; what is not asked for is empty or 0."""

    prefix: str = ""
    where: str = ""
    line: int = 0

    def fits(self, row: dict[str, Any]) -> bool:
        if self.prefix:
            return str(row.get("id", "")).startswith(self.prefix)
        return row["line"] == self.line and self.where in (row["source"], row["file"])

    @property
    def marks(self) -> tuple[bytes, ...]:
        """Bytes of which a fitting line holds all: most lines need not be parsed."""
        if self.prefix:
            return (b'"id":"' + self.prefix.encode(),)
        return (b'"line":%d,' % self.line,)


def _parse(record: str) -> _Wanted:
    where, colon, line = record.strip().rpartition(":")
    if colon and where and line.isdecimal():
        return _Wanted(where=where, line=int(line))
    name = record.strip().lower().partition("_")[0]
    if len(name) >= _MIN_PREFIX and set(name) <= set("0123456789abcdef"):
        return _Wanted(prefix=name)
    raise DataError(
        f"`{record}` names no record: give an id of train/*.jsonl or rejected.jsonl, the first {_MIN_PREFIX} or more of its hex digits, or a "
        "place as `source:line`."
    )


def _read_manifest(folder: Path) -> DataResult:
    try:
        return DataResult.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no finished data ({MANIFEST_NAME} is missing or broken): name the `data` folder of a run."
        ) from error


def _search(folder: Path, wanted: _Wanted, result: DataResult) -> Iterator[Explained]:
    for side in SIDES:
        for path in sorted((folder / side).glob("part-*.jsonl")):
            # Chunks of one record follow each other in one part.
            rows: list[dict[str, Any]] = []
            for row in _read_fitting(path, wanted):
                if rows and _name(row) != _name(rows[0]):
                    yield _tell_kept(rows, side, f"{side}/{path.name}", result)
                    rows = []
                rows.append(row)
            if rows:
                yield _tell_kept(rows, side, f"{side}/{path.name}", result)
    for row in _read_fitting(folder / REJECTED_FILE, wanted):
        yield _tell_rejected(row, result)


def _read_fitting(path: Path, wanted: _Wanted) -> Iterator[dict[str, Any]]:
    marks = wanted.marks
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            if all(mark in line for mark in marks):
                row: dict[str, Any] = orjson.loads(line)
                if wanted.fits(row):
                    yield row


def _name(row: dict[str, Any]) -> str:
    return str(row["id"]).partition("_")[0]


def _tell_kept(rows: list[dict[str, Any]], side: str, part: str, result: DataResult) -> Explained:
    first = rows[0]
    meta = first.get("meta", {})
    changed_by = tuple(meta.get("changedBy", ()))
    place = f"record {first['line']} of {first['file']} (source {first['source']})"
    pieces = f" as {len(rows)} chunks" if len(rows) > 1 else ""
    changes = f", changed by {', '.join(f'`{kind}`' for kind in changed_by)}" if changed_by else ""
    where = "held out for evaluation" if side == "evaluation" else "kept for training"
    return Explained(
        outcome="kept",
        source=first["source"],
        file=first["file"],
        line=first["line"],
        id=_name(first),
        detail=f"{place[0].upper()}{place[1:]} is {where} in {part}{pieces}{changes}.",
        text="\n".join(f"{m['role']}: {m['content']}" for row in rows for m in row["messages"]),
        side=side,
        part=part,
        examples=tuple(row["id"] for row in rows),
        scores=meta.get("scores"),
        changed_by=changed_by,
        steps=tuple(step.kind for step in result.funnel if step.number is not None),
    )


def _tell_rejected(row: dict[str, Any], result: DataResult) -> Explained:
    number = (row.get("step") or {}).get("number")
    step = next((s for s in result.funnel if s.number == number), None) if number is not None else None
    passed = [s.kind for s in result.funnel if s.number is not None and number is not None and s.number < number]
    place = f"record {row['line']} of {row['file']} (source {row['source']})"
    by = f"by step {number}, `{step.kind}`" if step is not None else f"as {row['reason']}"
    return Explained(
        outcome="rejected",
        source=row["source"],
        file=row["file"],
        line=row["line"],
        id=row.get("id", ""),
        detail=f"{place[0].upper()}{place[1:]} was rejected {by}. {row['detail']}",
        text=row["text"],
        scores=row.get("scores"),
        reason=row["reason"],
        step=step,
        rule=row.get("rule"),
        value=row.get("value"),
        threshold=row.get("threshold"),
        repeats=row.get("repeats"),
        steps=tuple(passed),
    )


def _tell_unknown(record: str, wanted: _Wanted, result: DataResult) -> str:
    if wanted.prefix:
        return (
            f"No record of this data has an id that begins with {wanted.prefix}: rows that could not be read have none, "
            "look for them by `source:line`."
        )
    names = [source.name for source in result.sources]
    if wanted.where not in names:
        return f"Nothing stands at {record}. The sources are {', '.join(names)}; a file is named as in rejected.jsonl."
    return f"The source {wanted.where} has no record at line {wanted.line}: blank lines, and posts that are no questions, are no records."

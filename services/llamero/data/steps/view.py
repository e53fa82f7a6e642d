"""What set steps see and leave: the records of a shard that are still there, and tables of what is dropped.

A view is JSON, since tasks carry it: `{"shard": n, "records": URI, "drops": [URI, …], "seed": n, "evaluationFraction": x, "sources": [names]}`.
`records` is a folder with RECORDS_FILE, and where the view says `"rows": true` with ROWS_FILE (which saves the work of telling the sides);
`drops` folders that earlier steps left with DROPS_FILE. What runs the tasks stands in the pipeline.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.content import hash_prompt
from llamero.data.selection import find_held_out, is_held_out
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record

RECORDS_FILE = "records.jsonl"
ROWS_FILE = "rows.npy"
DROPS_FILE = "drops.npy"
RULES_FILE = "rules.json"
_DROPS_AT_ONCE = 65_536

ROWS_DTYPE = np.dtype(
    [
        ("row", "<u4"),  # of the raw shard
        ("line", "<i8"),  # of the source's file
        ("hi", "<u8"),  # the record's id, first half
        ("lo", "<u8"),
        ("prompt", "<u8"),  # hash of the prompt as it is now
        ("input", "<u4"),  # lengths, in tokens or words
        ("output", "<u4"),
    ]
)
"""One record of RECORDS_FILE, in its order."""

View = dict[str, Any]
Task = dict[str, Any]
Report = Callable[[int], None]

DROP_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("row", "<u4"),
        ("rule", "<u2"),  # number in RULES_FILE
        ("value", "<f8"),  # NaN: none
        ("threshold", "<f8"),
        ("other_shard", "<u4"),  # the record that this one is the same as; its own place where there is none
        ("other_row", "<u4"),
    ]
)
"""One dropped record; a table is sorted by shard and row."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record in a view. `held_out`: it belongs to the evaluation side."""

    shard: int
    record: Record
    held_out: bool

    @property
    def place(self) -> tuple[int, int]:
        """What orders records, and names one: (shard, row)."""
        return self.shard, self.record.row


@dataclass(frozen=True, slots=True)
class SetDrop:
    """A record that a set step drops; `other` is the place of the one that it repeats."""

    place: tuple[int, int]
    rule: str
    value: float | None = None
    threshold: float | None = None
    other: tuple[int, int] | None = None


def read_view(view: View, files: SharedFiles) -> Iterator[Seen]:
    """The records of a shard that are still there, of the view's sources where it names some, in the rows' order."""
    shard, wanted = view["shard"], frozenset(view.get("sources") or ())
    gone = read_dropped_rows(view, files)
    if view.get("rows"):
        yield from _read_known(view, files, shard, wanted, gone)
        return
    folder = files.fetch(view["records"], [RECORDS_FILE])
    with (folder / RECORDS_FILE).open("rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            if row["row"] in gone or (wanted and row["source"] not in wanted):
                continue
            record = Record.from_dict(row)
            prompt = int.from_bytes(hash_prompt(record.messages, record.input), "big")
            yield Seen(shard, record, is_held_out(prompt, view["seed"], view["evaluationFraction"]))


def _read_known(view: View, files: SharedFiles, shard: int, wanted: frozenset[str], gone: set[int]) -> Iterator[Seen]:
    """`read_view` where prompts are hashed already and lines need not be parsed to be left out."""
    folder = files.fetch(view["records"], [RECORDS_FILE, ROWS_FILE])
    rows = np.load(folder / ROWS_FILE, allow_pickle=False)
    held_out = find_held_out(rows["prompt"], view["seed"], view["evaluationFraction"]).tolist()
    with (folder / RECORDS_FILE).open("rb") as lines:
        for line, row, side in zip(lines, rows["row"].tolist(), held_out, strict=True):
            if row in gone:
                continue
            record = Record.from_dict(orjson.loads(line))
            if not wanted or record.source in wanted:
                yield Seen(shard, record, side)


def read_dropped_rows(view: View, files: SharedFiles) -> set[int]:
    """The rows of a view's shard that earlier set steps dropped."""
    rows: set[int] = set()
    for uri in view["drops"]:
        rows.update(read_drops(uri, view["shard"], files)["row"].tolist())
    return rows


def read_drops(uri: str, shard: int, files: SharedFiles) -> NDArray:
    """A shard's part of a table of DROP_DTYPE."""
    table = np.load(files.fetch(uri, [DROPS_FILE]) / DROPS_FILE, mmap_mode="r", allow_pickle=False)
    start, end = np.searchsorted(table["shard"], [shard, shard + 1])
    return np.array(table[start:end])


def read_rules(uri: str, files: SharedFiles) -> list[str]:
    """The rules that a table's numbers mean."""
    rules: list[str] = orjson.loads((files.fetch(uri, [RULES_FILE]) / RULES_FILE).read_bytes())
    return rules


def write_drops(folder: Path, drops: Iterable[SetDrop]) -> int:
    """Leave a table of drops in a task's folder; how many. Holds the table (34 bytes a drop) in memory, not the drops."""
    rules: dict[str, int] = {}
    parts: list[NDArray] = [np.zeros(0, DROP_DTYPE)]
    numbered = iter(drops)
    while batch := list(islice(numbered, _DROPS_AT_ONCE)):
        rows = [
            (
                *drop.place,
                rules.setdefault(drop.rule, len(rules)),
                np.nan if drop.value is None else drop.value,
                np.nan if drop.threshold is None else drop.threshold,
                *(drop.other or drop.place),
            )
            for drop in batch
        ]
        parts.append(np.array(rows, dtype=DROP_DTYPE))
    table = np.concatenate(parts)
    table = table[np.lexsort((table["row"], table["shard"]))]
    np.save(folder / DROPS_FILE, table)
    (folder / RULES_FILE).write_bytes(orjson.dumps(list(rules)))
    return len(table)


@dataclass(frozen=True)
class Round:
    """Tasks that can be done at once, and what a person is told meanwhile.

    A task is `{"do": name in SET_TASKS, …JSON}`; it must hold all that decides its result. The pipeline adds the folder, named by a digest of
    the task and of the shards it names. `reusable`: the result is kept for later runs of the job (it must not depend on other shards).
    `rows`: how many records each task is about, for the progress.
    """

    activity: str
    tasks: Sequence[Task]
    reusable: bool = False
    rows: Sequence[int] | None = None


Plan = Generator[Round, list[Shard], list[str]]
"""Yields rounds, is sent each one's shards in the tasks' order, and returns the URIs of the folders with a table of drops."""


@dataclass(frozen=True)
class SetContext:
    """What a set step's plan may know: the views of all shards, how many records each holds, and the step's surroundings.

    `base`, `answers`, `workers`, `seed`, `allow_http`, `preparation`: as in `StepContext` (as URIs).
    `domains`: lists of tags by domain, as in `DataSpec.domains`.
    """

    views: tuple[View, ...]
    counts: tuple[int, ...]
    seed: int
    base: str | None
    answers: str
    workers: int
    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    allow_http: bool = False
    preparation: str = ""

    @property
    def records(self) -> int:
        """How many records the views hold, both sides together."""
        return sum(self.counts)


class SetStep(Protocol):
    """A step that looks across records: its plan, as rounds of tasks."""

    def plan(self, context: SetContext) -> Plan: ...


SetTask = Callable[[Task, Path, SharedFiles, Report], dict[str, Any]]
"""Does a task of a round: writes files into the folder (a partial one that is committed afterwards), returns a summary (JSON)."""

"""The duplicates step: one record a key, exactly, and Self-Instruct's rule for inputs with different answers.

Keys are hashes of folded text (`content.fold_text`). A table of keys for each shard, then one task for each range of hashes, which
sees all records of its keys: what it holds is bounded by the range, unless one key has more records than fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.content import fold_text, hash_content
from llamero.data.errors import DataError
from llamero.data.selection import slice_partition
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record, find_score
from llamero.data.steps.view import (
    Plan,
    Report,
    Round,
    Seen,
    SetContext,
    SetDrop,
    SetStep,
    SetTask,
    Task,
    read_drops,
    read_view,
    write_drops,
)
from llamero.spec.steps import DuplicatesStep

KEYS_FILE, CONFLICTS_FILE = "keys.npy", "conflicts.npy"
PARTITION_RECORDS = 1_000_000
"""Records that a task of a range holds, some 50 bytes each, a few times over while they are sorted."""

_REPORT_ROWS = 2000

KEY_DTYPE = np.dtype(
    [("hi", "<u8"), ("lo", "<u8"), ("row", "<u4"), ("held_out", "u1"), ("score", "<f8"), ("tie", "<u8")]
)
"""A record's key, and what tells which of a key's records stays; sorted by key."""

CONFLICT_DTYPE = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("input", "<u8"), ("answer", "<u8"), ("row", "<u4")])
"""A record as an instance of its instruction, whose hash `hi`, `lo` are; `input` is 0 where there is none."""


@dataclass(frozen=True)
class Duplicates:
    """The step with its options."""

    options: DuplicatesStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options.to_json_dict()
        indexes = yield Round(
            "Looking for duplicates",
            [{"do": "duplicates.index", "view": view, "options": options} for view in context.views],
            reusable=not any(view["drops"] for view in context.views),
            rows=context.counts,
        )
        shared = {
            "indexes": [s.uri for s in indexes],
            "shards": [view["shard"] for view in context.views],
            "options": options,
        }
        ranges = max(1, -(-context.records // PARTITION_RECORDS))
        conflicting: list[str] = []
        if self.options.conflicting != "keep":
            found = yield Round("Looking for conflicting answers", _split("duplicates.conflict", shared, ranges))
            conflicting = [s.uri for s in found if s.summary["dropped"]]
        shared["without"] = conflicting
        judged = yield Round("Choosing among duplicates", _split("duplicates.judge", shared, ranges))
        return conflicting + [s.uri for s in judged if s.summary["dropped"]]


def _split(do: str, shared: dict[str, Any], ranges: int) -> list[Task]:
    return [{"do": do, **shared, "range": i, "ranges": ranges} for i in range(ranges)]


def build(options: DuplicatesStep) -> SetStep:
    """The step. Raises DataError where it can't tell the best."""
    if options.keep == "best" and options.score is None:
        raise DataError("duplicates: `keep: best` needs `score`, the name of the score that the best is told by.")
    return Duplicates(options)


def index(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's keys, and its records as instances of their instructions."""
    options = DuplicatesStep.model_validate(task["options"])
    keys: list[tuple[Any, ...]] = []
    conflicts: list[tuple[int, ...]] = []
    for number, seen in enumerate(read_view(task["view"], files)):
        if number % _REPORT_ROWS == 0:
            report(number)
        key = _find_key(seen.record, options)
        if key is not None:
            keys.append((*_halve(key), *_describe(seen, options)))
        if options.conflicting != "keep":
            conflicts.append((*_describe_instance(seen.record), seen.record.row))
    for name, table in ((KEYS_FILE, np.array(keys, KEY_DTYPE)), (CONFLICTS_FILE, np.array(conflicts, CONFLICT_DTYPE))):
        np.save(folder / name, table[np.argsort(table["hi"], kind="stable")])
    return {"keys": len(keys)}


def _find_key(record: Record, options: DuplicatesStep) -> bytes | None:
    if options.by == "record":
        return hash_content(record.messages, record.input)
    if options.by == "prompt":
        return _hash(fold_text(record.prompt))
    if options.by == "id":
        identity = record.meta.get("sourceId")
        return _hash(record.source, str(identity)) if identity else None
    turns = [m for m in record.messages if m.role != "system"][:2]
    return _hash(*(f"{m.role} {fold_text(m.content)}" for m in turns), fold_text(record.input))


def _hash(*parts: str) -> bytes:
    return blake2b("\x1e".join(parts).encode(), digest_size=16).digest()


def _halve(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")


def _describe(seen: Seen, options: DuplicatesStep) -> tuple[int, bool, float, int]:
    record = seen.record
    if options.keep == "first":
        return record.row, seen.held_out, 0.0, 0
    score = float(len(record.answer)) if options.keep == "longest" else find_score(record, options.score or "")
    known = score is not None and not np.isnan(score)
    tie = int(record.id[:16], 16) if record.id else _halve(hash_content(record.messages, record.input))[0]
    return record.row, seen.held_out, float(score or 0.0) if known else -np.inf, tie


def _describe_instance(record: Record) -> tuple[int, int, int, int]:
    instruction = next(m.content for m in record.messages if m.role == "user")
    given = _halve(_hash(fold_text(record.input)))[0] | 1 if record.input.strip() else 0
    return *_halve(_hash(fold_text(instruction))), given, _halve(_hash(fold_text(record.answer)))[0]


def conflict(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The records of one range of instructions that give the same input different answers; or all of such instructions."""
    options = DuplicatesStep.model_validate(task["options"])
    table, shards = _load_range(task, CONFLICTS_FILE, files)
    order = np.lexsort((table["answer"], table["input"], table["lo"], table["hi"]))
    table, shards = table[order], shards[order]
    instructions = _number_groups(table, ["hi", "lo"])
    inputs = _number_groups(table, ["hi", "lo", "input"])
    answers = _number_groups(table, ["hi", "lo", "input", "answer"])
    first = np.unique(inputs, return_index=True)[1]
    counts = np.diff(np.append(first, len(table)))
    for_input = answers[first + counts - 1] - answers[first] + 1
    different = np.repeat(for_input, counts)
    is_conflicting = (different > 1) & (table["input"] != 0)
    if options.conflicting == "drop-instruction":
        chosen = (np.bincount(instructions, weights=is_conflicting, minlength=1) > 0)[instructions]
    else:
        chosen = is_conflicting
    drops = [
        SetDrop((int(shards[i]), int(table["row"][i])), "conflicting", float(different[i]), 1.0)
        for i in np.flatnonzero(chosen).tolist()
    ]
    return {"dropped": write_drops(folder, drops)}


def judge(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Which records of one range of keys are dropped: held-out ones stay before all others, then the best; of equal ones by content."""
    options = DuplicatesStep.model_validate(task["options"])
    table, shards = _load_range(task, KEYS_FILE, files)
    gone = _find_gone(task, shards, table["row"], files)
    table, shards = table[~gone], shards[~gone]
    order = np.lexsort(
        (
            table["row"],
            shards,
            table["tie"],
            -table["score"],
            1 - table["held_out"].astype(np.int8),
            table["lo"],
            table["hi"],
        )
    )
    table, shards = table[order], shards[order]
    groups = _number_groups(table, ["hi", "lo"])
    first = np.unique(groups, return_index=True)[1]
    best = first[groups] if len(groups) else groups
    drops = [
        SetDrop(
            (int(shards[i]), int(table["row"][i])),
            options.by,
            other=(int(shards[best[i]]), int(table["row"][best[i]])),
        )
        for i in np.flatnonzero(best != np.arange(len(table))).tolist()
    ]
    return {"dropped": write_drops(folder, drops)}


def _load_range(task: Task, name: str, files: SharedFiles) -> tuple[NDArray, NDArray[np.int64]]:
    """The records of one range of hashes over all shards, and the shard of each."""
    parts = [
        np.array(
            slice_partition(
                np.load(files.fetch(uri, [name]) / name, mmap_mode="r", allow_pickle=False),
                task["range"],
                task["ranges"],
            )
        )
        for uri in task["indexes"]
    ]
    return np.concatenate(parts), np.repeat(np.array(task["shards"], np.int64), [len(p) for p in parts])


def _number_groups(table: NDArray, names: Sequence[str]) -> NDArray[np.int64]:
    """The number of each row's group in a table that is sorted by `names`."""
    changes = np.zeros(len(table), bool)
    for name in names:
        changes[1:] |= table[name][1:] != table[name][:-1]
    groups: NDArray[np.int64] = np.cumsum(changes)
    return groups


def _find_gone(task: Task, shards: NDArray[np.int64], rows: NDArray, files: SharedFiles) -> NDArray[np.bool_]:
    """Which of the rows an earlier round dropped."""
    gone = np.zeros(len(rows), bool)
    for uri in task["without"]:
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            gone[mine] |= np.isin(rows[mine], read_drops(uri, shard, files)["row"])
    return gone


TASKS: dict[str, SetTask] = {"index": index, "conflict": conflict, "judge": judge}

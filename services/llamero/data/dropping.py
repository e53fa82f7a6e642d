"""What is known of the records that steps across records dropped, as `refine` and `write` need it: for a shard, by row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.folders import load_rows
from llamero.data.rejections import (
    CAPS,
    CAPS_STEP,
    EQUAL,
    EQUAL_STEP,
    StepName,
    Tally,
    describe_rejected,
    describe_set_drop,
)
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Drop, Record
from llamero.data.steps.view import RECORDS_FILE, ROWS_FILE, read_drops, read_rules

_SETTLED = {EQUAL: EQUAL_STEP, CAPS: CAPS_STEP}


@dataclass(frozen=True, slots=True)
class _Dropped:
    step: StepName
    drop: Drop
    other: tuple[int, int] | None


@dataclass
class DroppedRows:
    """The rows of a shard that were dropped, and why; `origins` and `clean` are the listing's, by shard."""

    rows: dict[int, _Dropped]
    origins: Sequence[dict[str, Any]]
    clean: Sequence[str]
    files: SharedFiles
    known: dict[int, NDArray] = field(default_factory=dict)
    file_names: dict[int, list[str]] = field(default_factory=dict)

    def reject(self, record: Record, tally: Tally) -> dict[str, Any]:
        """The line of a dropped record; counted in `tally`."""
        dropped = self.rows[record.row]
        step = dropped.step
        tally.drop(step.key, dropped.drop.rule)
        repeats = self._describe(dropped.other) if dropped.other is not None else None
        if step.key == CAPS:
            return describe_rejected(record, step.kind, "Not among the records that weight and maxRecords let in.")
        detail = describe_set_drop(step.kind, dropped.drop, repeats)
        drop = dropped.drop if step.reference is not None else None
        more = {"repeats": repeats} if repeats else {}
        return describe_rejected(record, step.kind, detail, step, drop, **more)

    def _describe(self, place: tuple[int, int]) -> dict[str, Any] | None:
        shard, row = place
        if shard not in self.known:
            self.known[shard] = load_rows(self.files.fetch(self.clean[shard], [ROWS_FILE]))
        table = self.known[shard]
        number = int(np.searchsorted(table["row"], row))
        found, origin = table[number], self.origins[shard]
        file = self._find_file(shard, number) if origin["isGathered"] else origin["file"]
        return {
            "source": origin["source"],
            "file": file,
            "line": int(found["line"]),
            "id": f"{found['hi']:016x}{found['lo']:016x}",
        }

    def _find_file(self, shard: int, number: int) -> str:
        """The file of a record in a shard that was gathered from many small ones."""
        if shard not in self.file_names:
            folder = self.files.fetch(self.clean[shard], [RECORDS_FILE])
            with (folder / RECORDS_FILE).open("rb") as lines:
                self.file_names[shard] = [orjson.loads(line)["file"] for line in lines]
        return self.file_names[shard][number]


def read_dropped(task: dict[str, Any], listing: dict[str, Any], files: SharedFiles) -> DroppedRows:
    """All drops of a task's shard; of a record that several steps name the first step's."""
    rows: dict[int, _Dropped] = {}
    for given in task["drops"]:
        uri, shard = given["uri"], task["shard"]
        rules = read_rules(uri, files)
        for entry in read_drops(uri, shard, files):
            rule, row = rules[entry["rule"]], int(entry["row"])
            if row in rows:
                continue
            step = StepName(**given["step"]) if given["step"] else _SETTLED[rule]
            other = (int(entry["other_shard"]), int(entry["other_row"]))
            drop = Drop(rule, "", _optional(entry["value"]), _optional(entry["threshold"]))
            rows[row] = _Dropped(step, drop, other if other != (shard, row) else None)
    return DroppedRows(rows, listing["origins"], listing["shards"], files)


def _optional(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

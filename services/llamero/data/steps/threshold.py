"""Keeps training records whose score lies within bounds; one without the score is dropped as `unscored`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llamero.data.choosing.tables import UNSCORED, read_training, require_scores
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import find_score
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetDrop, SetStep, SetTask, Task, write_drops
from llamero.spec.steps import ThresholdStep


def build(options: ThresholdStep) -> SetStep:
    return _Threshold(options)


@dataclass(frozen=True)
class _Threshold:
    options: ThresholdStep

    def plan(self, context: SetContext) -> Plan:
        bounds = {"score": self.options.score, "min": self.options.min, "max": self.options.max}
        tasks = [{"do": "threshold.drop", "view": view, **bounds} for view in context.views]
        shards = yield Round(f"choosing by {self.options.score}", tasks, reusable=True, rows=context.counts)
        summaries = [{"records": s.summary["records"], "scored": [s.summary["scored"]]} for s in shards]
        require_scores([self.options.score], summaries, "threshold")
        return [s.uri for s in shards]


def drop(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Drop a shard's records that lie outside."""
    counts = {"records": 0, "scored": 0}

    def judge() -> Iterator[SetDrop]:
        for seen in read_training(task["view"], files, report):
            value = find_score(seen.record, task["score"])
            counts["records"] += 1
            counts["scored"] += value is not None
            if value is None:
                yield SetDrop(seen.place, UNSCORED)
            elif task["min"] is not None and value < task["min"]:
                yield SetDrop(seen.place, "min", value, task["min"])
            elif task["max"] is not None and value > task["max"]:
                yield SetDrop(seen.place, "max", value, task["max"])

    dropped = write_drops(folder, judge())
    return {**counts, "dropped": dropped}


TASKS: Final[dict[str, SetTask]] = {"drop": drop}

"""Keeps a random part of the training records: which ones, content hash and seed decide, so that it is the same part however the data is cut."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamero.data.choosing.tables import count_wanted, gather, list_round, list_scores, order_by, save_drops
from llamero.data.errors import DataError
from llamero.data.selection import mix
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import RandomStep

_SALT = 3
"""Other draws from the same hashes (the held-out split, caps) have other salts: they must not agree."""


def build(options: RandomStep) -> SetStep:
    if options.fraction is None and options.records is None:
        raise DataError(
            "The step `random` keeps a part of the records: say how many in `records`, or which share in `fraction`."
        )
    return _Random(options)


@dataclass(frozen=True)
class _Random:
    options: RandomStep

    def plan(self, context: SetContext) -> Plan:
        lists = yield list_round("random_part.list", context, [])
        total = sum(s.summary["records"] for s in lists)
        wanted, rule = count_wanted(total, self.options.fraction, self.options.records)
        if wanted == total:
            return []
        task = {"do": "random_part.choose", "lists": [s.uri for s in lists], "wanted": wanted, "rule": rule}
        chosen = yield Round("drawing records", [{**task, "seed": context.seed}], rows=[total])
        return [s.uri for s in chosen]


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Drop all but the records that come first in the seeded order."""
    places, _ = gather(task["lists"], files)
    order = order_by(mix(places["hash"], task["seed"], _SALT), places)
    kept = np.zeros(len(places), bool)
    kept[order[: task["wanted"]]] = True
    return save_drops(folder, places[~kept], [task["rule"]])


TASKS: Final[dict[str, SetTask]] = {"list": list_scores, "choose": choose}

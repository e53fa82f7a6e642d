"""Instruction Mining (arXiv:2307.06290): a linear rule over indicators estimates the loss that a record leads to; the lowest are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamero.data.choosing.indicators import drop_after, keep_first, load_indicators, plan_indicators
from llamero.data.choosing.tables import count_wanted
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import MiningStep


def build(options: MiningStep) -> SetStep:
    return _Mining(options)


@dataclass(frozen=True)
class _Mining:
    options: MiningStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options
        indicators = yield from plan_indicators("mining", list(options.coefficients), options.embedding, None, context)
        task = {
            "do": "mining.choose",
            "indicators": indicators,
            "coefficients": list(options.coefficients.values()),
            "intercept": options.intercept,
            "fraction": options.fraction,
            "records": options.records,
        }
        chosen = yield Round("ranking by the rule", [task], rows=[context.records])
        return [s.uri for s in chosen]


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Drop all but the records with the lowest sums; the sum is rounded to 9 digits."""
    places, values = load_indicators(task["indicators"], files)[:2]
    sums = np.full(len(places), float(task["intercept"]))
    for column, coefficient in enumerate(task["coefficients"]):
        sums += coefficient * values[:, column]
    del values  # with millions of records each column counts
    sums = np.round(sums, 9)
    wanted, rule = count_wanted(len(places), task["fraction"], task["records"])
    kept = keep_first(sums, places, wanted)
    threshold = float(sums[kept].max()) if kept.any() else np.nan
    return drop_after(folder, places, sums, kept, rule, threshold) | {"kept": int(kept.sum())}


TASKS: Final[dict[str, SetTask]] = {"choose": choose}

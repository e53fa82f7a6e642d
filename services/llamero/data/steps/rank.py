"""InstructionGPT-4 (arXiv:2308.12067): several indicators in one weighted score, ranked within clusters; the best of each cluster are kept.

Each indicator is scaled to 0…1 by its 5th and 95th percentile over the training records, and cut off there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llamero.data.choosing.indicators import drop_after, load_indicators, plan_indicators
from llamero.data.choosing.tables import allot, count_wanted, order_by
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import RankStep

_PERCENTILES = (5, 95)


def build(options: RankStep) -> SetStep:
    return _Rank(options)


@dataclass(frozen=True)
class _Rank:
    options: RankStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options
        indicators = yield from plan_indicators(
            "rank", list(options.weights), options.embedding, options.clusters, context
        )
        task = {
            "do": "rank.choose",
            "indicators": indicators,
            "weights": list(options.weights.values()),
            "fraction": options.fraction,
            "records": options.records,
        }
        chosen = yield Round("ranking within clusters", [task], rows=[context.records])
        return [s.uri for s in chosen]


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Keep each cluster's best by its share; the sum is rounded to 9 digits."""
    places, values, labels = load_indicators(task["indicators"], files)
    sums = np.zeros(len(places))
    for column, weight in enumerate(task["weights"]):
        sums += weight * scale(values[:, column])
    sums = np.round(sums, 9)
    wanted, rule = count_wanted(len(places), task["fraction"], task["records"])
    scored = np.flatnonzero(~np.isnan(sums))
    clusters = int(labels.max()) + 1 if len(labels) else 0
    shares = allot(np.bincount(labels[scored], minlength=clusters), wanted)
    order = scored[order_by(-sums[scored], places[scored])]
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[order], np.arange(clusters))
    is_kept = np.arange(len(order)) - starts[labels[order]] < shares[labels[order]]
    kept = np.zeros(len(places), bool)
    kept[order[is_kept]] = True
    worst = np.full(clusters, np.inf)
    np.minimum.at(worst, labels[kept], sums[kept])
    limits = np.where(np.isfinite(worst), worst, np.nan)[labels] if clusters else np.zeros(0)
    return drop_after(folder, places, sums, kept, rule, limits) | {"kept": int(kept.sum())}


def scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """To 0…1 between the 5th and the 95th percentile of those that are numbers; 0 where both are the same."""
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    low, high = np.percentile(known, _PERCENTILES)
    if high <= low:
        return np.where(np.isnan(values), np.nan, 0.0)
    return np.clip((values - low) / (high - low), 0, 1)


TASKS: Final[dict[str, SetTask]] = {"choose": choose}

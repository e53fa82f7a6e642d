"""DEITA (arXiv:2312.15685): from the best record downwards, keep what is not too similar to a kept one.

The best is told by the product of scores, of equal ones by content. In a set too large for one task (some 300,000 records of 256 dimensions)
records are compared within parts of space.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamero.data.choosing.greedy import keep_dissimilar
from llamero.data.choosing.parts import load_part, plan_parts
from llamero.data.choosing.tables import (
    PLACES_FILE,
    UNSCORED,
    VALUES_FILE,
    gather,
    list_round,
    list_scores,
    on_one_thread,
    order_by,
    read_array,
    require_scores,
    save_drops,
    save_places,
)
from llamero.data.shared import SharedFiles
from llamero.data.steps.embedding import plan_vectors
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import DiversityStep

_RULES = ("maxSimilarity", "records", UNSCORED)
_KEPT = -1
_OTHERS_FILE = "others.npy"


def build(options: DiversityStep) -> SetStep:
    return _Diversity(options)


@dataclass(frozen=True)
class _Diversity:
    options: DiversityStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options
        lists = yield list_round("diversity.list", context, options.scores)
        require_scores(options.scores, [s.summary for s in lists], "diversity")
        vectors = yield from plan_vectors(options.embedding, context)
        parts = yield from plan_parts(context, vectors)
        if not parts:
            return []
        task = {"limit": options.max_similarity, "lists": [s.uri for s in lists]}
        count = options.records if len(parts) == 1 else None
        compared = yield Round(
            "comparing records",
            [{"do": "diversity.compare", **part, **task, "count": count} for part in parts],
            rows=[part["records"] for part in parts],
        )
        last = {"limit": options.max_similarity, "records": options.records, "compared": [s.uri for s in compared]}
        chosen = yield Round("choosing the best", [{"do": "diversity.choose", **last}], rows=[context.records])
        return [s.uri for s in chosen]


def compare(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A part's records: VALUES_FILE float64 [n, 3] (product, similarity, number in _RULES or -1: kept), and what they are too similar to."""
    places, vectors = load_part(task, files)
    products = _find_products(task["lists"], places, files)
    scored = np.flatnonzero(~np.isnan(products))
    order = scored[order_by(-products[scored], places[scored])]
    kept, other, similarity = keep_dissimilar(vectors[order], task["limit"], task["count"])
    values = np.full((len(places), 3), np.nan)
    values[:, 0], values[:, 2] = products, _RULES.index(UNSCORED)
    values[order, 1] = np.round(similarity, 6)
    values[order, 2] = np.where(other >= 0, _RULES.index("maxSimilarity"), _RULES.index("records"))
    values[order[kept], 2] = _KEPT
    others = places.copy()
    repeats = np.flatnonzero(other >= 0)
    others[order[repeats]] = places[order[other[repeats]]]
    save_places(folder, places)
    np.save(folder / VALUES_FILE, values)
    np.save(folder / _OTHERS_FILE, others)
    return {"records": len(places), "kept": len(kept)}


def _find_products(lists: list[str], places: np.ndarray, files: SharedFiles) -> np.ndarray:
    """The product of scores of each place, NaN where one is missing."""
    products = np.full(len(places), np.nan)
    by_shard = np.argsort(places["shard"], kind="stable")
    for uri in lists:
        own = read_array(uri, PLACES_FILE, files, [VALUES_FILE])
        if not len(own):
            continue
        start, end = np.searchsorted(places["shard"][by_shard], [own["shard"][0], own["shard"][0] + 1])
        here = by_shard[start:end]
        rows = np.searchsorted(own["row"], places["row"][here])
        products[here] = np.prod(read_array(uri, VALUES_FILE, files, [PLACES_FILE])[rows], axis=1)
    return products


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """All parts together; with `records` the best of what they kept."""
    places, values = gather(task["compared"], files)
    others = np.concatenate([read_array(uri, _OTHERS_FILE, files) for uri in task["compared"]])
    verdicts = values[:, 2].astype(np.int64)
    kept = np.flatnonzero(verdicts == _KEPT)
    if task["records"] is not None:
        best = kept[order_by(-values[kept, 0], places[kept])]
        verdicts[best[task["records"] :]] = _RULES.index("records")
    gone = verdicts != _KEPT
    is_similar = verdicts[gone] == _RULES.index("maxSimilarity")
    shown = np.where(is_similar, values[gone, 1], values[gone, 0])
    limits = np.where(is_similar, task["limit"], np.nan)
    return save_drops(folder, places[gone], _RULES, verdicts[gone], shown, limits, others[gone])


TASKS: Final[dict[str, SetTask]] = {"list": list_scores, "compare": on_one_thread(compare), "choose": choose}

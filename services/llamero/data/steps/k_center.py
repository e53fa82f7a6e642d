"""LTD (arXiv:2305.09246): the records nearest to cluster centres, then always the one farthest from its nearest kept one.

A set that fits one task (some 300,000 records of 256 dimensions) is chosen from exactly as the greedy loop would. A larger one is parted in
space; each part offers its own farthest-first order, and the parts' offers are merged by distance, so that all parts end at one radius.
Within a part it is exact; two kept records of neighbouring parts may lie closer together than the radius.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llamero.data.choosing.greedy import find_nearest, find_nearest_rows, k_center_distances
from llamero.data.choosing.parts import CENTRES_FILE, load_part, plan_centres, plan_parts
from llamero.data.choosing.tables import (
    PLACES_FILE,
    VALUES_FILE,
    count_wanted,
    gather,
    on_one_thread,
    read_array,
    save_drops,
    save_places,
)
from llamero.data.shared import SharedFiles
from llamero.data.steps.embedding import plan_vectors
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import KCenterStep

_OFFER = 4
"""A part offers so many times its share of the records: dense parts give up theirs to sparse ones."""


def build(options: KCenterStep) -> SetStep:
    return _KCenter(options)


@dataclass(frozen=True)
class _KCenter:
    options: KCenterStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options
        vectors = yield from plan_vectors(options.embedding, context)
        total = sum(s.summary["records"] for s in vectors)
        wanted, rule = count_wanted(total, options.fraction, options.records)
        if wanted == total:
            return []
        parts = yield from plan_parts(context, vectors)
        seeds = None
        if len(parts) == 1:
            seeds = yield from plan_centres(context, vectors, options.clusters, options.clustering)
        offers = [
            {"do": "k_center.offer", **part, "seeds": seeds, "count": _count_offer(part["records"], total, wanted)}
            for part in parts
        ]
        rows = [part["records"] for part in parts]
        offered = yield Round("choosing the farthest", offers, rows=rows)
        merged = yield Round(
            "merging", [{"do": "k_center.merge", "offers": [s.uri for s in offered], "wanted": wanted}], rows=[total]
        )
        drops = [
            {"do": "k_center.drop", **part, "kept": merged[0].uri, "rule": rule, "radius": merged[0].summary["radius"]}
            for part in parts
        ]
        dropped = yield Round("dropping what is near", drops, rows=rows)
        return [s.uri for s in dropped]


def _count_offer(records: int, total: int, wanted: int) -> int:
    return wanted if records == total else min(records, -(-_OFFER * wanted * records // total))


def offer(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A part's records in farthest-first order, with how far each was from those before (infinite for the first ones)."""
    places, vectors = load_part(task, files)
    if task["part"] is None:
        points = np.array(read_array(task["seeds"], CENTRES_FILE, files))
    else:
        points = np.array(read_array(task["centres"], CENTRES_FILE, files))[task["part"]][None]
    first = find_nearest_rows(vectors, points) if len(vectors) else np.zeros(0, np.int64)
    chosen, distances = k_center_distances(vectors, first, task["count"])
    save_places(folder, places[chosen])
    np.save(folder / VALUES_FILE, np.round(distances.astype(np.float64), 5)[:, None])
    return {"records": len(chosen)}


def merge(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The `wanted` of all offers that were farthest when they were chosen; the first ones of the parts in any case."""
    places, distances = gather(task["offers"], files)
    far = distances[:, 0]
    if len(task["offers"]) > 1:  # a single offer stands in its order of choice, which ties must not change
        order = np.lexsort((places["row"], places["shard"], places["hash"], -far))
        places, far = places[order], far[order]
    places, far = places[: task["wanted"]], far[: task["wanted"]]
    save_places(folder, np.sort(places, order=["shard", "row"]))
    last = far[-1] if len(far) else np.inf
    return {"records": len(places), "radius": float(last) if np.isfinite(last) else None}


def drop(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Drop a part's records that were not kept: `value` is the distance to the nearest kept one of the part, which is named too."""
    places, vectors = load_part(task, files)
    kept = _is_in(places, np.array(read_array(task["kept"], PLACES_FILE, files)))
    gone = ~kept
    nearest, distances = find_nearest(vectors, np.flatnonzero(kept))
    others = places[nearest] if kept.any() else places
    values = np.where(np.isfinite(distances), np.round(distances.astype(np.float64), 4), np.nan)
    radius = np.nan if task["radius"] is None else task["radius"]
    return save_drops(folder, places[gone], [task["rule"]], 0, values[gone], radius, others[gone])


def _is_in(places: np.ndarray, kept: np.ndarray) -> np.ndarray:
    keys = (places["shard"].astype(np.uint64) << np.uint64(32)) | places["row"]
    wanted = (kept["shard"].astype(np.uint64) << np.uint64(32)) | kept["row"]
    return np.isin(keys, wanted)


TASKS: Final[dict[str, SetTask]] = {"offer": on_one_thread(offer), "merge": merge, "drop": on_one_thread(drop)}

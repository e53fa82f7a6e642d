"""All that records are ranked by, in one table: scores that they bring along, and what only the set can tell (rarity, nearest neighbours).

`rarity` is the Euclidean distance to the centre of the record's own cluster: what lies at a cluster's edge is rare.
`neighbourDistance` is that to the 6th nearest neighbour (Instruction Mining's KNN-6); in a set too large for one part, to the 6th
nearest of the record's own part of space.
"""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.choosing.parts import DISTANCES_FILE, LABELS_FILE, plan_centres, plan_parts
from llamero.data.choosing.tables import (
    PLACES_FILE,
    VALUES_FILE,
    gather,
    list_round,
    order_by,
    read_array,
    require_scores,
    save_drops,
)
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.embedding import plan_vectors
from llamero.data.steps.view import Round, SetContext
from llamero.spec.steps import Embedding

NEIGHBOUR = 6
RARITY, NEIGHBOUR_DISTANCE = "rarity", "neighbourDistance"
_QUERIES = 16_384


def plan_indicators(
    kind: str, names: Sequence[str], embedding: Embedding, clusters: int | None, context: SetContext
) -> Generator[Round, list[Shard], dict[str, Any]]:
    """The rounds that measure `names`; returns what a task needs to `load_indicators`. `clusters`: None where none are asked for.

    Raises DataError where no record has one of the scores.
    """
    brought = [name for name in names if name not in (RARITY, NEIGHBOUR_DISTANCE)]
    lists = yield list_round("embedding.list", context, brought)
    require_scores(brought, [s.summary for s in lists], kind)
    found: dict[str, Any] = {"names": list(names), "brought": brought, "lists": [s.uri for s in lists]}
    found |= {"labels": [], "neighbours": []}
    if not sum(s.summary["records"] for s in lists) or (clusters is None and len(brought) == len(names)):
        return found
    vectors = yield from plan_vectors(embedding, context)
    rows = [s.summary["records"] for s in vectors]
    if clusters is not None or RARITY in names:
        centres = yield from plan_centres(context, vectors, clusters or 64)
        tasks = [{"do": "embedding.label", "vectors": s.uri, "centres": centres} for s in vectors]
        labels = yield Round("telling clusters", tasks, rows=rows)
        found["labels"] = [s.uri for s in labels]
    if NEIGHBOUR_DISTANCE in names:
        asked = []
        for part in (yield from plan_parts(context, vectors)):
            of = -(-part["records"] // _QUERIES)
            asked += [
                {"do": "embedding.neighbours", **part, "number": i, "of": of, "neighbour": NEIGHBOUR} for i in range(of)
            ]
        measured = yield Round("finding neighbours", asked, rows=[t["records"] // t["of"] for t in asked])
        found["neighbours"] = [s.uri for s in measured]
    return found


def load_indicators(
    indicators: dict[str, Any], files: SharedFiles
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.int32]]:
    """Places [n] in the shards' order, values [n, names] float64 (NaN: none), and clusters [n] (0 where none were asked for)."""
    places, brought = gather(indicators["lists"], files)
    names: list[str] = indicators["names"]
    values = np.full((len(places), len(names)), np.nan)
    labels = np.zeros(len(places), np.int32)
    for column, name in enumerate(indicators["brought"]):
        values[:, names.index(name)] = brought[:, column]
    if indicators["labels"]:
        labels = np.concatenate([read_array(uri, LABELS_FILE, files, [DISTANCES_FILE]) for uri in indicators["labels"]])
        if RARITY in names:
            distances = [read_array(uri, DISTANCES_FILE, files, [LABELS_FILE]) for uri in indicators["labels"]]
            # Rounded again: 0.1234 in float32 is 0.12340000271797180 in float64.
            values[:, names.index(RARITY)] = np.round(np.concatenate(distances).astype(np.float64), 4)
    if indicators["neighbours"]:
        where = [np.array(read_array(uri, PLACES_FILE, files, [VALUES_FILE])) for uri in indicators["neighbours"]]
        distances = [read_array(uri, VALUES_FILE, files, [PLACES_FILE])[:, 0] for uri in indicators["neighbours"]]
        own = np.concatenate(where)
        order = np.lexsort((own["row"], own["shard"]))
        values[:, names.index(NEIGHBOUR_DISTANCE)] = np.round(np.concatenate(distances)[order], 4)
    return places, values, labels


def drop_after(
    folder: Any,
    places: NDArray,
    sums: NDArray[np.float64],
    kept: NDArray[np.bool_],
    rule: str,
    threshold: NDArray[np.float64] | float,
) -> dict[str, Any]:
    """Drop what is not kept by `rule`, and as `unscored` what has no sum (NaN). `threshold` [n]: the last sum that was kept."""
    gone = ~kept
    is_unscored = np.isnan(sums[gone])
    limits = np.where(is_unscored, np.nan, np.broadcast_to(threshold, len(places))[gone])
    return save_drops(folder, places[gone], [rule, "unscored"], is_unscored.astype(np.int64), sums[gone], limits)


def keep_first(sums: NDArray[np.float64], places: NDArray, wanted: int) -> NDArray[np.bool_]:
    """The `wanted` records with the smallest sums (never one without), ties by content."""
    kept = np.zeros(len(sums), bool)
    order = order_by(sums, places)[:wanted]  # NaN comes last
    kept[order[~np.isnan(sums[order])]] = True
    return kept

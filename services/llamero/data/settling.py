"""The tasks `cap` and `settle`: over the hashes of all candidates, which are within their source's cap and which repeat another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.rejections import CAPS, EQUAL
from llamero.data.selection import (
    SelectionRule,
    Verdict,
    distinct_orders,
    select_smallest,
    settle,
    slice_partition,
    stack_indexes,
)
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import SetDrop, write_drops
from llamero.data.taskfiles import INDEX_FILE, Report, Task, load_array, read_listing


def _load_partition(
    task: Task, listing: dict[str, Any], files: SharedFiles
) -> tuple[NDArray, NDArray[np.uint32], NDArray[np.uint32]]:
    parts = [
        np.array(
            slice_partition(
                load_array(files.fetch(uri, [INDEX_FILE]) / INDEX_FILE), task["partition"], task["partitions"]
            )
        )
        for uri in listing["shards"]
    ]
    return stack_indexes(parts, range(len(parts)), listing["shardSources"])


def cap_sources(task: Task, report: Report, files: SharedFiles) -> Shard:
    """For each source with maxRecords: the smallest orders of its distinct records in one range of hashes."""

    def build(folder: Path) -> dict[str, Any]:
        index, _, sources = _load_partition(task, read_listing(task), files)
        for source, count in task["maxRecords"].items():
            orders = distinct_orders(index, sources, int(source), task["seed"])
            np.save(folder / f"{source}.npy", select_smallest(orders, count))
        return {}

    return files.commit(task["folder"], build)


def settle_candidates(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Which candidates of one range of hashes are dropped: repeats of another, and those beyond their source's cap."""

    def build(folder: Path) -> dict[str, Any]:
        index, shards, sources = _load_partition(task, read_listing(task), files)
        rule = SelectionRule(
            seed=task["seed"],
            evaluation_fraction=0.0,
            cap_thresholds=tuple(int(t) for t in task["capThresholds"]),
        )
        verdicts = settle(index, shards, sources, rule)
        return {"drops": write_drops(folder, _list_drops(verdicts))}

    return files.commit(task["folder"], build)


def _list_drops(verdicts: NDArray) -> Iterator[SetDrop]:
    for entry in verdicts[np.isin(verdicts["verdict"], (Verdict.DUPLICATE, Verdict.CAPPED))]:
        place = (int(entry["shard"]), int(entry["row"]))
        if entry["verdict"] == Verdict.CAPPED:
            yield SetDrop(place, CAPS)
        else:
            yield SetDrop(place, EQUAL, other=(int(entry["first_shard"]), int(entry["first_row"])))

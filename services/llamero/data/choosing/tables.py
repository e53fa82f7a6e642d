"""What the tasks of choosing steps hand each other: which records there are to choose from, their scores, and who is dropped.

Tables cover training records alone: held-out ones are never chosen among. A record is told by its place, and ordered where something
must be by the hash of its content, so that neither shards nor order of arrival decide.
"""

from collections.abc import Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.content import hash_content
from llamero.data.errors import DataError
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record, find_score
from llamero.data.steps.view import (
    DROP_DTYPE,
    DROPS_FILE,
    RULES_FILE,
    Report,
    Round,
    Seen,
    SetContext,
    SetTask,
    Task,
    View,
    read_view,
)

PLACES_FILE = "places.npy"
VALUES_FILE = "values.npy"

PLACE_DTYPE = np.dtype([("shard", "<u4"), ("row", "<u4"), ("hash", "<u8")])
"""A training record: where it stands, and 64 bits of its content's hash."""

UNSCORED = "unscored"
"""The rule by which a record is dropped that lacks a score that is chosen by."""

_REPORT_EVERY = 500


def on_one_thread(task: SetTask) -> SetTask:
    """The task with matrix products on one thread: the other cores have workers of their own, and how a product is shared out over threads
    changes its last bits."""

    @wraps(task)
    def limited(options: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

        with threadpool_limits(1, user_api="blas"):
            return task(options, folder, files, report)

    return limited


def read_training(view: View, files: SharedFiles, report: Report) -> Iterator[Seen]:
    """The training records of a view, in the rows' order; `report` is told all records, held-out ones too."""
    for done, seen in enumerate(read_view(view, files), start=1):
        if not seen.held_out:
            yield seen
        if done % _REPORT_EVERY == 0:
            report(done)


def hash_record(record: Record) -> int:
    """64 bits of the record's content."""
    if record.id:
        return int(record.id[:16], 16)
    return int.from_bytes(hash_content(record.messages, record.input)[:8], "big")


def make_place(seen: Seen) -> tuple[int, int, int]:
    """An entry of PLACE_DTYPE."""
    return (*seen.place, hash_record(seen.record))


def list_scores(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The training records of `task["view"]` with their scores by `task["scores"]`: PLACES_FILE, and VALUES_FILE float64 [n, scores], NaN: none."""
    names: list[str] = task["scores"]
    places, values = [], []
    for seen in read_training(task["view"], files, report):
        places.append(make_place(seen))
        values.append([_or_nan(find_score(seen.record, name)) for name in names])
    table = np.array(values, np.float64).reshape(len(places), len(names))
    save_places(folder, np.array(places, PLACE_DTYPE))
    np.save(folder / VALUES_FILE, table)
    return {"records": len(places), "scored": [int(n) for n in np.isfinite(table).sum(axis=0)]}


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def list_round(do: str, context: SetContext, scores: Sequence[str], **rest: Any) -> Round:
    """A task a shard that lists its training records, with scores."""
    tasks = [{"do": do, "view": view, "scores": list(scores), **rest} for view in context.views]
    return Round("reading scores" if scores else "reading records", tasks, rows=context.counts)


def require_scores(names: Sequence[str], summaries: Sequence[dict[str, Any]], kind: str) -> None:
    """Raises DataError where no record at all has a score: then a step is missing, not a value."""
    if not sum(s["records"] for s in summaries):
        return
    for number, name in enumerate(names):
        if not sum(s["scored"][number] for s in summaries):
            raise DataError(
                f"No training record has the score `{name}` that the step `{kind}` asks for: put a step before it that gives it (`score` for "
                "perplexity and ifd, `judge` for what a model is to say), or name another score."
            )


def save_places(folder: Path, places: NDArray) -> None:
    np.save(folder / PLACES_FILE, places)


def read_array(uri: str, name: str, files: SharedFiles, beside: Sequence[str] = ()) -> NDArray:
    """One array of a task's folder, mapped into memory. `beside`: other files of the folder that will be asked for, too."""
    path = files.fetch(uri, [name, *beside]) / name
    try:
        array: NDArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without an element can't be mapped
        array = np.load(path, allow_pickle=False)
    return array


def gather(uris: Sequence[str], files: SharedFiles) -> tuple[NDArray, NDArray[np.float64]]:
    """Places [n] and scores [n, m] of all lists, in the shards' order."""
    places = [read_array(uri, PLACES_FILE, files, [VALUES_FILE]) for uri in uris]
    values = [read_array(uri, VALUES_FILE, files, [PLACES_FILE]) for uri in uris]
    if not uris:
        return np.zeros(0, PLACE_DTYPE), np.zeros((0, 0))
    return np.concatenate(places), np.concatenate(values)


def count_wanted(total: int, fraction: float | None, records: int | None) -> tuple[int, str]:
    """How many of `total` records to keep, and which option says so: `records` where it is given, else the nearest to `fraction` (at least 1)."""
    if records is not None:
        return min(records, total), "records"
    if fraction is None:
        return total, "fraction"
    return min(max(int(total * fraction + 0.5), 1), total), "fraction"


def order_by(keys: NDArray, places: NDArray) -> NDArray[np.int64]:
    """Indices from the smallest key to the greatest; equal ones by content, and equal content by place."""
    return np.lexsort((places["row"], places["shard"], places["hash"], keys))


def save_drops(
    folder: Path,
    places: NDArray,
    rules: Sequence[str],
    rule: NDArray[np.int64] | int = 0,
    value: NDArray[np.float64] | float = np.nan,
    threshold: NDArray[np.float64] | float = np.nan,
    other: NDArray | None = None,
) -> dict[str, Any]:
    """`write_drops` for whole arrays: `places` [n] are dropped by `rules[rule]`; `other` [n] are places. A summary with their number."""
    table = np.zeros(len(places), DROP_DTYPE)
    table["shard"], table["row"] = places["shard"], places["row"]
    table["rule"], table["value"], table["threshold"] = rule, value, threshold
    others = places if other is None else other
    table["other_shard"], table["other_row"] = others["shard"], others["row"]
    keys = (places["shard"].astype(np.uint64) << np.uint64(32)) | places["row"]
    if (keys[1:] < keys[:-1]).any():  # most tables come in order: no second copy then
        table = table[np.argsort(keys)]
    np.save(folder / DROPS_FILE, table)
    (folder / RULES_FILE).write_bytes(orjson.dumps(list(rules)))
    return {"dropped": len(table)}


def allot(sizes: NDArray[np.int64], wanted: int, temperature: float = 1.0) -> NDArray[np.int64]:
    """How many of `wanted` each group gets: in proportion to its share to the power 1/temperature, never more than it has.

    `sizes` [k]. What full groups can't take goes to the others; remainders go to the largest fractions, of equal ones to the first.
    Returns [k] with the sum min(wanted, sizes.sum()).
    """
    given = np.zeros(len(sizes), np.int64)
    total = int(sizes.sum())
    if not total:
        return given
    weights = (sizes / total) ** (1 / temperature)
    left, is_open = min(wanted, total), sizes > 0
    while left:
        quotas = np.where(is_open, left * weights / weights[is_open].sum(), 0.0)
        full = is_open & (quotas >= sizes)
        if not full.any():
            break
        given[full] = sizes[full]
        left -= int(sizes[full].sum())
        is_open &= ~full
    if left:
        floors = np.floor(quotas + 1e-9).astype(np.int64)
        rest = left - int(floors.sum())
        order = np.argsort(-np.round(quotas - floors, 9) - np.where(is_open, 0, -2), kind="stable")
        floors[order[:rest]] += 1
        given += floors
    return given

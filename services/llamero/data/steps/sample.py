"""LIMA's sampling (arXiv:2305.11206): groups get records by their share to the power 1/temperature, and give their best-scored first.

The paper draws groups by chance; here each gets its expected number, so that the same records always make the same sample.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from llamero.data.choosing.tables import (
    PLACE_DTYPE,
    PLACES_FILE,
    VALUES_FILE,
    allot,
    gather,
    make_place,
    order_by,
    read_array,
    read_training,
    save_drops,
    save_places,
)
from llamero.data.lengths import find_domain
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record, find_score
from llamero.data.steps.view import Plan, Report, Round, SetContext, SetStep, SetTask, Task
from llamero.spec.steps import SampleStep

_NAMES_FILE = "names.json"
_TAGS_FILE = "tags.npy"
_STARTS_FILE = "starts.npy"
_RULES = ("records", "minAnswerScore")


def build(options: SampleStep) -> SetStep:
    return _Sample(options)


@dataclass(frozen=True)
class _Sample:
    options: SampleStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options
        rest = {"groupBy": options.group_by, "order": options.order, "domains": dict(context.domains)}
        tasks = [{"do": "sample.list", "view": view, **rest} for view in context.views]
        lists = yield Round("reading groups and scores", tasks, rows=context.counts)
        task = {
            "do": "sample.choose",
            "lists": [s.uri for s in lists],
            "records": options.records,
            "temperature": options.temperature,
            "minAnswerScore": options.min_answer_score,
        }
        chosen = yield Round("sampling over groups", [task], rows=[context.records])
        return [s.uri for s in chosen]


def list_groups(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's training records with the names of the groups that each may be counted to, VALUES_FILE float64 [n, 2]: order, answer's score."""
    names: dict[str, int] = {}
    places, values, tags, starts = [], [], [], [0]
    for seen in read_training(task["view"], files, report):
        record = seen.record
        places.append(make_place(seen))
        values.append([_or_nan(find_score(record, task["order"])), _or_nan(find_score(record, "sourceScore"))])
        tags += [names.setdefault(name, len(names)) for name in _find_groups(record, task)]
        starts.append(len(tags))
    save_places(folder, np.array(places, PLACE_DTYPE))
    np.save(folder / VALUES_FILE, np.array(values, np.float64).reshape(-1, 2))
    np.save(folder / _TAGS_FILE, np.array(tags, np.uint32))
    np.save(folder / _STARTS_FILE, np.array(starts, np.int64))
    (folder / _NAMES_FILE).write_bytes(orjson.dumps(list(names)))
    return {"records": len(places)}


def _find_groups(record: Record, task: Task) -> list[str]:
    if task["groupBy"] == "source":
        return [record.source]
    if task["groupBy"] == "domain":
        return [find_domain(record.tags, task["domains"])]
    return list(dict.fromkeys(record.tags)) or [""]


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Drop answers with too low a score, then all but each group's best. Records without the score that orders come last in their group."""
    places, values = gather(task["lists"], files)
    low = np.zeros(len(places), bool)
    if task["minAnswerScore"] is not None:
        low = values[:, 1] < task["minAnswerScore"]  # an answer without votes (NaN) is not judged by them
    names, groups = _find_rarest(task["lists"], low, files)
    eligible = np.flatnonzero(~low)
    sizes = np.bincount(groups[eligible], minlength=len(names))
    shares = allot(sizes, task["records"], task["temperature"])
    scores = np.where(np.isnan(values[:, 0]), -np.inf, values[:, 0])
    order = eligible[order_by(-scores[eligible], places[eligible])]
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.searchsorted(groups[order], np.arange(len(names)))
    taken = np.arange(len(order)) - starts[groups[order]] < shares[groups[order]]
    kept = np.zeros(len(places), bool)
    kept[order[taken]] = True
    gone = ~kept
    rules = np.where(low[gone], _RULES.index("minAnswerScore"), _RULES.index("records"))
    shown = np.where(low[gone], values[gone, 1], values[gone, 0])
    limits = np.where(low[gone], np.nan if task["minAnswerScore"] is None else task["minAnswerScore"], np.nan)
    return save_drops(folder, places[gone], _RULES, rules, shown, limits) | {"groups": int((sizes > 0).sum())}


def _find_rarest(lists: list[str], low: np.ndarray, files: SharedFiles) -> tuple[list[str], np.ndarray]:
    """All names in order, and for each record the number of its rarest one among eligible records (of equally rare ones the first)."""
    beside = [PLACES_FILE, VALUES_FILE, _TAGS_FILE, _STARTS_FILE, _NAMES_FILE]
    own_names: list[list[str]] = [orjson.loads((files.fetch(u, beside) / _NAMES_FILE).read_bytes()) for u in lists]
    frequency: Counter[str] = Counter()
    done = 0
    for uri, names in zip(lists, own_names, strict=True):
        tags, starts = read_array(uri, _TAGS_FILE, files, beside), read_array(uri, _STARTS_FILE, files, beside)
        count = len(starts) - 1
        is_counted = np.repeat(~low[done : done + count], np.diff(starts))
        numbers = np.bincount(tags[is_counted], minlength=len(names))
        frequency.update(dict(zip(names, numbers.tolist(), strict=True)))
        done += count
    ordered = sorted(frequency, key=lambda name: (frequency[name], name))
    rank = {name: i for i, name in enumerate(ordered)}
    groups = []
    for uri, names in zip(lists, own_names, strict=True):
        tags, starts = read_array(uri, _TAGS_FILE, files, beside), read_array(uri, _STARTS_FILE, files, beside)
        if len(starts) > 1:
            ranks = np.array([rank[name] for name in names], np.int64)[tags]
            groups.append(np.minimum.reduceat(ranks, starts[:-1]))
    return ordered, np.concatenate(groups) if groups else np.zeros(0, np.int64)


TASKS: Final[dict[str, SetTask]] = {"list": list_groups, "choose": choose}

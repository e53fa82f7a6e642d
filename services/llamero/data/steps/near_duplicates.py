"""The nearDuplicates step over shards: sketch each, pair what shares a band, verify the pairs, connect them, choose what stays.

The mathematics stand in `llamero.data.near`; here is what each task reads and leaves. A task maps what it needs and holds a bounded
part of it: a range of band keys, a batch of pairs, the clusters of some hundred thousand edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.content import hash_content
from llamero.data.errors import DataError
from llamero.data.near import build_sets, sketch_keys
from llamero.data.near.choosing import choose_kept, complete_edges, compress, connect
from llamero.data.near.pairs import Pairs, Similarities, drop_repeated, may_be_similar, measure_jaccard, pair_up
from llamero.data.near.sketch import ShingleSets
from llamero.data.near.words import Hashes
from llamero.data.rouge import measure_rouge, split_words
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record, find_score
from llamero.data.steps.view import (
    Plan,
    Report,
    Round,
    Seen,
    SetContext,
    SetDrop,
    SetStep,
    SetTask,
    Task,
    read_view,
    write_drops,
)
from llamero.spec.steps import NearDuplicatesStep

KEYS_FILE, ROWS_FILE, VALUES_FILE, PROMPTS_FILE = "keys.npy", "rows.npy", "values.npy", "prompts.npy"
PAIRS_FILE, EDGES_FILE = "pairs.npy", "edges.npy"

PARTITION_KEYS = 1_000_000
"""Band keys that a pairing task holds, 24 bytes each; its pairs are at most 8 a key."""

GROUP_RECORDS = 500_000
PART_EDGES = 500_000
_READ_ROWS = 4096
_READ_CHARACTERS = 8 << 20
_BATCH_VALUES = 1 << 21
_PROMPTS_SHORTER = 8
"""ROUGE reads prompts, as bytes, of which many pairs share the same."""
_CHUNK_EDGES = 1 << 20

KEY_DTYPE = np.dtype([("key", "<u8"), ("tie", "<u8"), ("place", "<u4"), ("size", "<u4")])
"""One band of one record; a shard's table is sorted by key. `place`: number in ROWS_FILE; `size`: shingles in its set."""

ROW_DTYPE = np.dtype(
    [
        ("row", "<u4"),
        ("held_out", "u1"),
        ("score", "<f8"),  # what stays is told by: the greater the better
        ("tie", "<u8"),  # content
        ("start", "<u8"),
        ("stop", "<u8"),  # of its shingles in VALUES_FILE
        ("prompt_start", "<u8"),
        ("prompt_stop", "<u8"),  # of its words in PROMPTS_FILE, as bytes
    ]
)

PAIR_DTYPE = np.dtype([("a", "<i8"), ("b", "<i8"), ("size", "<u4")])
"""Two records, numbered through all shards, a < b, and the shingles of both together."""

EDGE_DTYPE = np.dtype([("a", "<i8"), ("b", "<i8"), ("similarity", "<f8")])


@dataclass(frozen=True)
class NearDuplicates:
    """The step with its options."""

    options: NearDuplicatesStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options.to_json_dict()
        sketches = yield Round(
            "Looking for near duplicates",
            [{"do": "near_duplicates.sketch", "view": view, "options": options} for view in context.views],
            reusable=not any(view["drops"] for view in context.views),
            rows=context.counts,
        )
        counts = [s.summary["records"] for s in sketches]
        shared = {"sketches": [s.uri for s in sketches], "counts": counts, "options": options}
        partitions = max(1, -(-sum(s.summary["keys"] for s in sketches) // PARTITION_KEYS))
        paired = yield Round(
            "Pairing records",
            [
                {"do": "near_duplicates.pair", **shared, "partition": i, "partitions": partitions}
                for i in range(partitions)
            ],
        )
        found = [p.uri for p in paired if p.summary["pairs"]]
        if not found:
            return []
        verified = yield Round(
            "Comparing pairs",
            [
                {"do": "near_duplicates.verify", **shared, "pairs": found, "first": first, "last": last}
                for first, last in _group_records(counts)
            ],
        )
        edges = [v.uri for v in verified if v.summary["edges"]]
        if not edges:
            return []
        task = {"do": "near_duplicates.connect", "edges": edges, "records": sum(counts)}
        (connected,) = yield Round("Gathering clusters", [task])
        chosen = yield Round(
            "Choosing what stays",
            [
                {
                    "do": "near_duplicates.choose",
                    **shared,
                    "shards": [view["shard"] for view in context.views],
                    "connected": connected.uri,
                    "part": part,
                }
                for part in range(connected.summary["parts"])
            ],
        )
        return [c.uri for c in chosen]


def build(options: NearDuplicatesStep) -> SetStep:
    """The step. Raises DataError where it can't tell the best."""
    if options.keep == "best" and options.score is None:
        raise DataError("nearDuplicates: `keep: best` needs `score`, the name of the score that the best is told by.")
    return NearDuplicates(options)


def _group_records(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of record numbers of about GROUP_RECORDS."""
    total = sum(counts)
    groups = max(1, -(-total // GROUP_RECORDS))
    for i in range(groups):
        yield total * i // groups, total * (i + 1) // groups


def sketch(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's records as sets of shingles and band keys."""
    options = NearDuplicatesStep.model_validate(task["options"])
    rows: list[tuple[Any, ...]] = []
    tables: list[NDArray] = []
    values: list[Hashes] = []
    prompts: list[bytes] = []
    stop = prompt_stop = 0
    for batch in _batch_records(read_view(task["view"], files)):
        sets, numbers = build_sets([seen.record.get_field(options.field) for seen in batch], options.ngram)
        ties = np.array([_hash_record(seen.record) for seen in batch], np.uint64)
        for seen, tie, size in zip(batch, ties, sets.sizes.tolist(), strict=True):
            prompt = " ".join(split_words(seen.record.prompt)).encode() if options.verify == "rouge-l" else b""
            score = _score(seen.record, options)
            place = (stop, stop + size, prompt_stop, prompt_stop + len(prompt))
            rows.append((seen.record.row, seen.held_out, score, tie, *place))
            prompts.append(prompt)
            stop, prompt_stop = place[1], place[3]
        tables.append(_build_keys(sets, numbers, ties, len(rows) - len(batch), options))
        values.append(sets.values)
        report(len(rows))
    keys = np.concatenate([np.zeros(0, KEY_DTYPE), *tables])
    np.save(folder / KEYS_FILE, keys[np.argsort(keys["key"], kind="stable")])
    np.save(folder / ROWS_FILE, np.array(rows, dtype=ROW_DTYPE))
    np.save(folder / VALUES_FILE, np.concatenate([np.zeros(0, np.uint64), *values]))
    np.save(folder / PROMPTS_FILE, np.frombuffer(b"".join(prompts), np.uint8))
    return {"records": len(rows), "keys": len(keys)}


def _batch_records(records: Iterator[Seen]) -> Iterator[list[Seen]]:
    batch: list[Seen] = []
    size = 0
    for seen in records:
        batch.append(seen)
        size += sum(len(m.content) for m in seen.record.messages)
        if len(batch) == _READ_ROWS or size >= _READ_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_record(record: Record) -> int:
    if record.id:
        return int(record.id[:16], 16)
    return int.from_bytes(hash_content(record.messages, record.input)[:8], "big")


def _score(record: Record, options: NearDuplicatesStep) -> float:
    if options.keep == "first":
        return 0.0
    if options.keep == "longest":
        return float(len(record.answer))
    score = find_score(record, options.score or "")
    return -np.inf if score is None or np.isnan(score) else score


def _build_keys(sets: ShingleSets, numbers: Hashes, ties: Hashes, first: int, options: NearDuplicatesStep) -> NDArray:
    filled = np.flatnonzero(sets.sizes)
    keys = sketch_keys(sets, numbers, options)[:, filled]
    table = np.zeros(keys.shape, KEY_DTYPE)
    table["key"], table["tie"] = keys, ties[filled]
    table["place"], table["size"] = first + filled, sets.sizes[filled]
    return table.ravel()


def pair(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The pairs of one range of band keys over all shards."""
    options = NearDuplicatesStep.model_validate(task["options"])
    parts, numbers = [], []
    for uri, offset in zip(task["sketches"], _find_offsets(task["counts"]), strict=False):
        keys = np.load(files.fetch(uri, [KEYS_FILE]) / KEYS_FILE, mmap_mode="r", allow_pickle=False)
        part = _slice_range(keys, task["partition"], task["partitions"])
        parts.append(part)
        numbers.append(part["place"].astype(np.int64) + offset)
    table, number = np.concatenate(parts), np.concatenate(numbers)
    pairs = pair_up(table["key"], table["tie"])
    sizes = table["size"].astype(np.int64)
    if options.verify == "jaccard":
        pairs = pairs[may_be_similar(sizes, pairs, options.threshold)]
    found = np.zeros(len(pairs), PAIR_DTYPE)
    ends = np.sort(number[pairs], axis=1)
    found["a"], found["b"], found["size"] = ends[:, 0], ends[:, 1], sizes[pairs].sum(axis=1)
    found = _drop_repeated(found)
    np.save(folder / PAIRS_FILE, found)
    return {"pairs": len(found)}


def _find_offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    """The number of each shard's first record, and of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))])


def _slice_range(keys: NDArray, partition: int, partitions: int) -> NDArray:
    low, high = (2**64 * partition) // partitions, (2**64 * (partition + 1)) // partitions
    start = int(np.searchsorted(keys["key"], np.uint64(low)))
    end = len(keys) if high == 2**64 else int(np.searchsorted(keys["key"], np.uint64(high)))
    return np.array(keys[start:end])


def verify(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The pairs whose first record is in a range, compared: those similar enough are edges."""
    options = NearDuplicatesStep.model_validate(task["options"])
    sketches = _Sketches(task, files)
    pairs = _collect_pairs(task, files)
    edges: list[NDArray] = [np.zeros(0, EDGE_DTYPE)]
    first = 0
    weights = np.cumsum(pairs["size"], dtype=np.int64)
    most = _BATCH_VALUES if options.verify == "jaccard" else _BATCH_VALUES * _PROMPTS_SHORTER
    while first < len(pairs):
        taken = int(weights[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(weights, taken + most, side="right")))
        ends = np.stack([pairs["a"][first:last], pairs["b"][first:last]], axis=1)
        similarities = sketches.measure(ends, options)
        alike = similarities >= options.threshold
        found = np.zeros(int(alike.sum()), EDGE_DTYPE)
        found["a"], found["b"], found["similarity"] = ends[alike, 0], ends[alike, 1], similarities[alike]
        edges.append(found)
        first = last
    table = np.concatenate(edges)
    np.save(folder / EDGES_FILE, table)
    return {"pairs": len(pairs), "edges": len(table)}


def _collect_pairs(task: Task, files: SharedFiles) -> NDArray:
    parts = []
    for uri in task["pairs"]:
        table = np.load(files.fetch(uri, [PAIRS_FILE]) / PAIRS_FILE, mmap_mode="r", allow_pickle=False)
        start, end = np.searchsorted(table["a"], [task["first"], task["last"]])
        parts.append(np.array(table[start:end]))
    return _drop_repeated(np.concatenate(parts))


def _drop_repeated(pairs: NDArray) -> NDArray:
    """Each pair once, sorted."""
    pairs = pairs[np.lexsort((pairs["b"], pairs["a"]))]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs["a"][1:] != pairs["a"][:-1]) | (pairs["b"][1:] != pairs["b"][:-1])
    return pairs[is_new]


class _Sketches:
    """All shards' sketches; records are numbered through. What is scattered is read, not mapped: maps would gather page upon page."""

    def __init__(self, task: Task, files: SharedFiles) -> None:
        self._uris = task["sketches"]
        self._files = files
        self._offsets = _find_offsets(task["counts"])

    def locate(self, records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each record its shard's position and its place in there."""
        shards = np.searchsorted(self._offsets, records, side="right") - 1
        return shards, records - self._offsets[shards]

    def read_rows(self, records: NDArray[np.int64]) -> NDArray:
        """The records' rows [n] of ROW_DTYPE; `records` ascending."""
        shards, places = self.locate(records)
        parts = [np.zeros(0, ROW_DTYPE)]
        for shard in np.unique(shards).tolist():
            table = np.load(self._find(shard, ROWS_FILE), mmap_mode="r", allow_pickle=False)
            parts.append(np.array(table[places[shards == shard]]))
        return np.concatenate(parts)

    def measure(self, pairs: Pairs, options: NearDuplicatesStep) -> Similarities:
        """How similar the two records of each pair are."""
        records, local = np.unique(pairs, return_inverse=True)
        local = local.reshape(pairs.shape)
        if options.verify == "rouge-l":
            return measure_rouge(self._read_prompts(records), local, options.threshold)
        return measure_jaccard(self._read_sets(records), local)

    def _read_sets(self, records: NDArray[np.int64]) -> ShingleSets:
        rows = self.read_rows(records)
        parts = self._read_ranges(records, VALUES_FILE, rows["start"], rows["stop"])
        sizes = (rows["stop"] - rows["start"]).astype(np.int64)
        return ShingleSets(
            np.frombuffer(b"".join(parts), np.uint64), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        )

    def _read_prompts(self, records: NDArray[np.int64]) -> list[str]:
        rows = self.read_rows(records)
        parts = self._read_ranges(records, PROMPTS_FILE, rows["prompt_start"], rows["prompt_stop"])
        return [part.decode() for part in parts]

    def _read_ranges(
        self, records: NDArray[np.int64], name: str, starts: NDArray[np.uint64], stops: NDArray[np.uint64]
    ) -> Iterator[bytes]:
        """The bytes of each record's range in its shard's file."""
        shards, _ = self.locate(records)
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            with self._find(shard, name).open("rb") as stream:
                np.lib.format.read_magic(stream)
                _, _, dtype = np.lib.format.read_array_header_1_0(stream)
                begin = stream.tell()
                for start, stop in zip(starts[mine].tolist(), stops[mine].tolist(), strict=True):
                    stream.seek(begin + start * dtype.itemsize)
                    yield stream.read((stop - start) * dtype.itemsize)

    def _find(self, shard: int, name: str) -> Path:
        return self._files.fetch(self._uris[shard], [name]) / name


def connect_edges(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Clusters by union-find over all edges; the edges in parts, each with whole clusters."""
    parents = np.arange(task["records"], dtype=np.int32)
    for edges in _read_edges(task, files):
        connect(parents, np.stack([edges["a"], edges["b"]], axis=1))
    for first in range(0, len(parents), _CHUNK_EDGES):
        compress(parents, np.arange(first, min(first + _CHUNK_EDGES, len(parents))))
    sizes = np.zeros(len(parents), np.int64)
    for edges in _read_edges(task, files):
        np.add.at(sizes, parents[edges["a"]], 1)
    before = np.cumsum(sizes) - sizes
    parts = 0
    for edges in _read_edges(task, files):
        part = before[parents[edges["a"]]] // PART_EDGES
        for number in np.unique(part).tolist():
            with (folder / _part_name(number)).open("ab") as stream:
                stream.write(edges[part == number].tobytes())
            parts = max(parts, number + 1)
    for number in range(parts):
        (folder / _part_name(number)).touch()
    return {"parts": parts}


def _part_name(part: int) -> str:
    return f"edges-{part:05d}.bin"


def _read_edges(task: Task, files: SharedFiles) -> Iterator[NDArray]:
    for uri in task["edges"]:
        table = np.load(files.fetch(uri, [EDGES_FILE]) / EDGES_FILE, mmap_mode="r", allow_pickle=False)
        for first in range(0, len(table), _CHUNK_EDGES):
            yield np.array(table[first : first + _CHUNK_EDGES])


def choose(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """What is dropped of a part's clusters: held-out records stay before all others, then the best; of equal ones by content."""
    options = NearDuplicatesStep.model_validate(task["options"])
    name = _part_name(task["part"])
    edges = np.fromfile(files.fetch(task["connected"], [name]) / name, EDGE_DTYPE)
    sketches = _Sketches(task, files)
    ends = np.stack([edges["a"], edges["b"]], axis=1)
    records = np.unique(ends)
    rows = sketches.read_rows(records)
    shards, _ = sketches.locate(records)
    ties = rows["tie"] if options.keep != "first" else np.zeros(len(rows), np.uint64)
    order = np.lexsort((records, ties, -rows["score"], 1 - rows["held_out"].astype(np.int8)))
    ranks = np.empty(len(records), np.int64)
    ranks[order] = np.arange(len(records))
    pairs = drop_repeated(np.sort(ranks[np.searchsorted(records, ends)], axis=1), max(len(records), 1))
    roots = np.arange(len(records), dtype=np.int32)
    if len(pairs):
        connect(roots, pairs)
    by_rank = records[order]

    def measure(wanted: Pairs) -> Similarities:
        measured = [
            sketches.measure(by_rank[wanted[i : i + _READ_ROWS]], options) for i in range(0, len(wanted), _READ_ROWS)
        ]
        return np.concatenate([np.zeros(0), *measured])

    completed = complete_edges(pairs, measure(pairs), roots.astype(np.int64), measure, options.threshold)
    favoured, similarities = choose_kept(len(records), *completed)
    numbers = np.array(task["shards"])[shards]
    places = list(zip(numbers.tolist(), rows["row"].tolist(), strict=True))
    drops = [
        SetDrop(
            places[order[rank]],
            "threshold",
            float(similarities[rank]),
            options.threshold,
            places[order[favoured[rank]]],
        )
        for rank in np.flatnonzero(favoured >= 0).tolist()
    ]
    return {"dropped": write_drops(folder, drops)}


TASKS: dict[str, SetTask] = {
    "sketch": sketch,
    "pair": pair,
    "verify": verify,
    "connect": connect_edges,
    "choose": choose,
}

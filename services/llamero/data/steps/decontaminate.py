"""The decontaminate step: which training records overlap the held-out split or a named evaluation set, and in how many words.

Evaluation texts become tables of hashes (runs of words, sets of shingles), gathered by ranges of hashes and mapped by the tasks that
look each shard's training records up. Held-out records are never dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.errors import DataError
from llamero.data.near.overlap import (
    ENTRY_DTYPE,
    Runs,
    build_runs,
    cap_entries,
    drop_boilerplate,
    find_longest_run,
    find_prefixes,
    look_up,
    look_up_all,
    make_entries,
    sort_entries,
)
from llamero.data.near.pairs import measure_jaccard
from llamero.data.near.sketch import ShingleSets, build_shingles, collect_sets, spread_ranges
from llamero.data.near.words import Words, hash_words
from llamero.data.readers.draft import RowError
from llamero.data.readers.records import find_column
from llamero.data.rows import BrokenRow, read_lines, read_rows
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record
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
from llamero.spec.steps import DecontaminateStep
from llamero.storage import StorageError, fingerprint_uri, list_files, open_uri

RUNS_FILE, PREFIXES_FILE, VALUES_FILE, ROWS_FILE = "runs.npy", "prefixes.npy", "values.npy", "rows.npy"
HASHES_FILE, FIRSTS_FILE = "hashes.npy", "firsts.npy"
PARTITION_HASHES = 2_000_000
"""Hashes that a gathering task holds, 16 bytes each, a few times over."""

_BATCH_RECORDS = 2048
_BATCH_CHARACTERS = 8 << 20
_HIGH = 1 << 40
"""Evaluation records are numbered through: the number of their batch times this, plus their place in it."""

ROWS_DTYPE = np.dtype([("row", "<u4"), ("start", "<u8"), ("stop", "<u8")])
"""A held-out record's row, or the row of an evaluation set's file; and where its shingles lie in VALUES_FILE."""


@dataclass(frozen=True)
class Decontaminate:
    """The step with its options."""

    options: DecontaminateStep

    def plan(self, context: SetContext) -> Plan:
        options = self.options.to_json_dict()
        named = list(_find_files(self.options))
        tasks: list[Task] = [{"do": "decontaminate.index_file", **file, "options": options} for file in named]
        names = [file["name"] for file in named]
        if any(view["evaluationFraction"] > 0 for view in context.views):
            tasks += [
                {"do": "decontaminate.index", "view": {**view, "sources": []}, "options": options}
                for view in context.views
            ]
        indexed = yield Round("Reading evaluation records", tasks)
        batches = [
            {"uri": shard.uri, "part": part, "name": task.get("name"), "shard": task.get("view", {}).get("shard")}
            for task, shard in zip(tasks, indexed, strict=True)
            for part in range(shard.summary["parts"])
        ]
        if not batches:
            return []
        partitions = max(1, -(-sum(s.summary["hashes"] for s in indexed) // PARTITION_HASHES))
        shared = {"batches": batches, "options": options}
        gathered = yield Round(
            "Gathering evaluation records",
            [
                {"do": "decontaminate.gather", **shared, "partition": i, "partitions": partitions}
                for i in range(partitions)
            ],
        )
        shared = {**shared, "gathered": [s.uri for s in gathered], "names": names}
        matched = yield Round(
            "Looking for overlaps with evaluation records",
            [{"do": "decontaminate.match", **shared, "view": view} for view in context.views],
            rows=context.counts,
        )
        return [s.uri for s in matched if s.summary["dropped"]]


def build(options: DecontaminateStep) -> SetStep:
    """The step. Raises DataError where short prompts could never be told from n-grams."""
    if options.min_words > options.ngram:
        raise DataError("decontaminate: `minWords` is greater than `ngram`: make it smaller.")
    return Decontaminate(options)


def _find_files(options: DecontaminateStep) -> Iterator[dict[str, Any]]:
    for given in options.against:
        try:
            uris = list_files(given.uri)
            for uri in uris:
                name = uri.split("?", 1)[0].rstrip("/").rsplit("/", 1)[-1]
                yield {"uri": uri, "name": name, "columns": given.columns, "fingerprint": fingerprint_uri(uri)}
        except StorageError as error:
            raise DataError(
                f"The evaluation set {given.uri} can't be read: {error} Mend the uri in `decontaminate.against`."
            ) from error


# -- what evaluation records say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """An evaluation record: its texts, which of them may be compared as a whole though they are short, and all as one."""

    row: int
    texts: tuple[str, ...]
    may_be_short: tuple[bool, ...]
    whole: str


def index(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The held-out records of a shard as hashes."""
    held_out = (_describe_record(seen.record) for seen in read_view(task["view"], files) if seen.held_out)
    return _write_index(folder, held_out, DecontaminateStep.model_validate(task["options"]))


def index_file(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The records of an evaluation set's file as hashes. Raises DataError where one can't be read or has no text."""
    summary = _write_index(folder, _read_texts(task, files), DecontaminateStep.model_validate(task["options"]))
    if not summary["parts"]:
        raise DataError(f"The evaluation set {task['name']} holds no text: name another file, or other columns.")
    return summary


def _describe_record(record: Record) -> _Texts:
    """Short prompts are shared with the held-out split by chance ("Hello, may I help you?"): only whole records count there."""
    texts, _ = _split_record(record)
    return _Texts(record.row, texts, (False,) * len(texts), record.text)


def _split_record(record: Record) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """A record's texts that are compared, and which are prompts: the first turn with its input, the input alone, every other turn."""
    turns = [m.content for m in record.messages if m.role != "system"][1:]
    texts = (record.prompt, *((record.input,) if record.input else ()), *turns)
    prompts = len(texts) - len(turns)
    return texts, (True,) * prompts + (False,) * len(turns)


def _read_texts(task: Task, files: SharedFiles) -> Iterator[_Texts]:
    try:
        path = files.fetch_named(task["uri"])
        with open_uri(str(path)) as stream:
            is_plain = ".txt" in [suffix.lower() for suffix in path.suffixes]
            for row in (read_lines if is_plain else read_rows)(stream, path.name):
                if isinstance(row, BrokenRow):
                    raise DataError(f"Row {row.line} of the evaluation set {task['name']} can't be read: {row.detail}")
                texts = tuple(_collect_texts(_load_row(row.line, row.json, task), row.line, task))
                if texts:
                    yield _Texts(row.line, texts, (True,) * len(texts), "\n\n".join(texts))
    except StorageError as error:
        raise DataError(f"The evaluation set {task['name']} can't be read: {error}") from error


def _load_row(line: int, json: bytes, task: Task) -> Any:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError as error:
        raise DataError(f"Row {line} of the evaluation set {task['name']} is no JSON: {error}") from error


def _collect_texts(row: Any, line: int, task: Task) -> Iterator[str]:
    if not task["columns"]:
        yield from _find_strings(row)
        return
    for column in task["columns"]:
        try:
            yield from _find_strings(find_column(row, column))
        except RowError as error:
            raise DataError(f"Row {line} of the evaluation set {task['name']}: {error.detail}") from error


def _find_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _find_strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _find_strings(item)


def _write_index(folder: Path, records: Iterable[_Texts], options: DecontaminateStep) -> dict[str, Any]:
    parts = hashes = 0
    for batch in _batch(records):
        runs, owners = _find_runs(
            [t for r in batch for t in r.texts], [s for r in batch for s in r.may_be_short], options
        )
        of_texts = np.repeat(np.arange(len(batch)), [len(r.texts) for r in batch])
        entries = make_entries(runs.hashes, of_texts[owners])
        sets = _find_sets([r.whole for r in batch], options)
        values, members = find_prefixes(sets, options.max_jaccard)
        rows = np.zeros(len(batch), ROWS_DTYPE)
        rows["row"], rows["start"], rows["stop"] = [r.row for r in batch], sets.offsets[:-1], sets.offsets[1:]
        for name, table in (
            (RUNS_FILE, entries),
            (PREFIXES_FILE, make_entries(values, members)),
            (VALUES_FILE, sets.values),
            (ROWS_FILE, rows),
        ):
            np.save(folder / _part_name(parts, name), table)
        parts, hashes = parts + 1, hashes + len(entries)
    return {"parts": parts, "hashes": hashes}


def _batch(records: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.whole)
        if len(batch) == _BATCH_RECORDS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash(texts: Sequence[str]) -> Words:
    """Words without operators: a worked sum, `<<3*4=12>>`, would else be as long as a sentence."""
    return hash_words(texts, with_operators=False)


def _find_runs(
    texts: Sequence[str], may_be_short: Sequence[bool], options: DecontaminateStep
) -> tuple[Runs, NDArray[np.int64]]:
    """Runs of words, and the text of each."""
    runs = build_runs(_hash(texts), options.ngram, options.min_words, np.array(may_be_short, bool))
    return runs, np.repeat(np.arange(len(texts)), np.diff(runs.offsets))


def _find_sets(texts: Sequence[str], options: DecontaminateStep) -> ShingleSets:
    return collect_sets(*build_shingles(_hash(texts), options.jaccard_ngram))


def _part_name(part: int, name: str) -> str:
    return f"{part:05d}-{name}"


def gather(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """One range of hashes over all evaluation records: runs of words that are no boilerplate, and shingles by which sets meet."""
    options = DecontaminateStep.model_validate(task["options"])
    runs = drop_boilerplate(_load_range(task, RUNS_FILE, files), options.boilerplate)
    prefixes = cap_entries(_load_range(task, PREFIXES_FILE, files))
    np.save(folder / HASHES_FILE, runs["hash"])
    np.save(folder / FIRSTS_FILE, runs["record"])
    np.save(folder / PREFIXES_FILE, prefixes)
    return {"runs": len(runs), "prefixes": len(prefixes)}


def _load_range(task: Task, name: str, files: SharedFiles) -> NDArray:
    parts = [np.zeros(0, ENTRY_DTYPE)]
    bits = 52 if name == PREFIXES_FILE else 64  # values of sets have 52 bits
    low = (2**bits * task["partition"]) // task["partitions"]
    high = (2**bits * (task["partition"] + 1)) // task["partitions"] - 1
    for number, batch in enumerate(task["batches"]):
        table = _map(batch["uri"], _part_name(batch["part"], name), files)
        start = int(np.searchsorted(table["hash"], np.uint64(low), side="left"))
        end = int(np.searchsorted(table["hash"], np.uint64(high), side="right"))
        part = np.array(table[start:end])
        part["record"] += np.uint64(number * _HIGH)
        parts.append(part)
    return sort_entries(np.concatenate(parts))


def _map(uri: str, name: str, files: SharedFiles) -> NDArray:
    table: NDArray = np.load(files.fetch(uri, [name]) / name, mmap_mode="r", allow_pickle=False)
    return table


# -- what training records share with them --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Training:
    """A training record, sized for a batch."""

    record: Record
    shard: int
    whole: str


def match(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The training records of a shard that overlap an evaluation record."""
    matching = _Matching(task, files)
    drops: list[SetDrop] = []
    done = 0
    for batch in _batch(_only_training(read_view(task["view"], files))):
        drops += matching.find_drops(batch)
        done += len(batch)
        report(done)
    return {"dropped": write_drops(folder, drops)}


def _only_training(records: Iterable[Seen]) -> Iterator[_Training]:
    for seen in records:
        if not seen.held_out:
            yield _Training(seen.record, seen.shard, seen.record.text)


class _Matching:
    """Looks batches of training records up in the gathered tables, one mapped at a time: what stays mapped stays in memory."""

    def __init__(self, task: Task, files: SharedFiles) -> None:
        self._options = DecontaminateStep.model_validate(task["options"])
        self._batches = task["batches"]
        self._files = files
        self._gathered = task["gathered"]

    def find_drops(self, batch: Sequence[_Training]) -> list[SetDrop]:
        found = self._find_overlaps(batch)
        for place, (evaluation, similarity) in self._find_alike(batch).items():
            found.setdefault(place, (evaluation, "maxJaccard", similarity, self._options.max_jaccard))
        return [
            self._describe(batch[place], *overlap) for place, overlap in sorted(found.items(), key=lambda item: item[0])
        ]

    def _describe(self, training: _Training, evaluation: int, rule: str, value: float, threshold: float) -> SetDrop:
        place = training.shard, training.record.row
        batch = self._batches[evaluation // _HIGH]
        if batch["name"] is not None:
            return SetDrop(place, f"{rule} in {batch['name']}", value, threshold)
        return SetDrop(place, rule, value, threshold, (batch["shard"], int(self._read_row(evaluation)["row"])))

    def _read_row(self, evaluation: int) -> Any:
        batch = self._batches[evaluation // _HIGH]
        return _map(batch["uri"], _part_name(batch["part"], ROWS_FILE), self._files)[evaluation % _HIGH]

    def _find_overlaps(self, batch: Sequence[_Training]) -> dict[int, tuple[int, str, float, float]]:
        """By place in the batch: the evaluation record, the rule, the words in a row and how many are too many."""
        options = self._options
        split = [_split_record(training.record) for training in batch]
        runs, _ = _find_runs(
            [t for texts, _ in split for t in texts], [s for _, short in split for s in short], options
        )
        evaluations = self._look_up(runs)
        of_texts = np.repeat(np.arange(len(batch)), [len(texts) for texts, _ in split])
        hits = np.flatnonzero(evaluations >= 0)
        owners = np.searchsorted(runs.offsets, hits, side="right") - 1
        found: dict[int, tuple[int, str, float, float]] = {}
        for text in np.unique(owners).tolist():
            own = evaluations[runs.offsets[text] : runs.offsets[text + 1]]
            first = int(own[own >= 0].min())
            words = find_longest_run(own >= 0) + options.ngram - 1
            place = int(of_texts[text])
            texts, _ = split[place]
            length = self._count_words(texts[text - int(np.searchsorted(of_texts, place))])
            if length < options.ngram:
                overlap = (first, "minWords", float(length), float(options.min_words))
            else:
                overlap = (first, "ngram", float(words), float(options.ngram))
            if place not in found or overlap[2] > found[place][2]:
                found[place] = overlap
        return found

    def _count_words(self, text: str) -> int:
        return int(_hash([text]).lengths[0])

    def _look_up(self, runs: Runs) -> NDArray[np.int64]:
        """The first evaluation record with each run, -1 where there is none."""
        evaluations = np.full(len(runs.hashes), -1, np.int64)
        for uri in self._gathered:
            places = look_up(runs.hashes, _map(uri, HASHES_FILE, self._files))
            hit = places >= 0
            if hit.any():
                evaluations[hit] = _map(uri, FIRSTS_FILE, self._files)[places[hit]].astype(np.int64)
        return evaluations

    def _find_alike(self, batch: Sequence[_Training]) -> dict[int, tuple[int, float]]:
        """By place in the batch: the evaluation record that is more alike than allowed, the most alike first."""
        options = self._options
        sets = _find_sets([training.whole for training in batch], options)
        values, members = find_prefixes(sets, options.max_jaccard)
        pairs = []
        for uri in self._gathered:
            positions, records = look_up_all(values, _map(uri, PREFIXES_FILE, self._files))
            pairs.append(np.stack([members[positions], records.astype(np.int64)], axis=1))
        wanted = np.unique(np.concatenate(pairs), axis=0)
        found: dict[int, tuple[int, float]] = {}
        for first in range(0, len(wanted), _BATCH_RECORDS):
            part = wanted[first : first + _BATCH_RECORDS]
            evaluations, places = np.unique(part[:, 1], return_inverse=True)
            both = _join(sets, self._read_sets(evaluations))
            similarities = measure_jaccard(both, np.stack([part[:, 0], len(sets.sizes) + places.ravel()], axis=1))
            for (place, evaluation), similarity in zip(part.tolist(), similarities.tolist(), strict=True):
                if similarity > options.max_jaccard and similarity > found.get(place, (0, 0.0))[1]:
                    found[place] = evaluation, similarity
        return found

    def _read_sets(self, evaluations: NDArray[np.int64]) -> ShingleSets:
        parts, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        numbers = evaluations // _HIGH
        for number in np.unique(numbers).tolist():
            batch = self._batches[number]
            places = evaluations[numbers == number] % _HIGH
            rows = _map(batch["uri"], _part_name(batch["part"], ROWS_FILE), self._files)[places]
            sizes = (rows["stop"] - rows["start"]).astype(np.int64)
            mapped = _map(batch["uri"], _part_name(batch["part"], VALUES_FILE), self._files)
            parts.append(mapped[spread_ranges(rows["start"].astype(np.int64), sizes)])
            counts.append(sizes)
        return ShingleSets(
            np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
        )


def _join(first: ShingleSets, second: ShingleSets) -> ShingleSets:
    """Both rows of sets, one after the other."""
    offsets = np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]])
    return ShingleSets(np.concatenate([first.values, second.values]), offsets)


TASKS: dict[str, SetTask] = {"index": index, "index_file": index_file, "gather": gather, "match": match}

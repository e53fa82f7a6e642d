"""The tasks of the data phase: plain functions of JSON dicts that hold URIs, so that a process here or a queue's worker runs the same.

`read` cuts a file into raw shards, `clean` makes candidates of one, `cap` and `judge` decide over all candidates by their hashes,
`write` lays out what one shard keeps. Each commits its folder by a manifest; which task follows which is the coordinator's.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.content import show_turns
from llamero.data.lengths import Statistics
from llamero.data.readers import READERS
from llamero.data.selection import (
    INDEX_DTYPE,
    SelectionRule,
    Verdict,
    distinct_orders,
    judge,
    select_smallest,
    slice_partition,
    stack_indexes,
)
from llamero.data.shards import Shard, read_raw_rows, write_raw_row
from llamero.data.shared import SharedFiles, SharedStorageError
from llamero.data.sources import read_secret
from llamero.model.tokens import TokenSet, TokenWriter
from llamero.spec.job import DataFormat, DataSource
from llamero.spec.names import shard_name
from llamero.spec.records import MAX_REJECTED_TEXT, Conversation, RejectionReason
from llamero.storage import Refused, StorageError, is_local, open_uri, read_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llamero.data.clean import Candidate

Task = dict[str, Any]
Report = Callable[[int], None]

RECORDS_FILE = "records.jsonl"
REJECTED_FILE = "rejected.jsonl"
INDEX_FILE = "index.npy"
CANDIDATES_FILE = "candidates.npy"
TOKENS_FOLDER = "tokens"
VERDICTS_FILE = "verdicts.npy"
SIDES = {Verdict.TRAIN: "train", Verdict.EVALUATION: "evaluation"}
SAMPLES_PER_REASON = 3

_REPORT_ROWS = 2000
_ATTEMPTS = 3
_RETRY_SECONDS = 2.0

CANDIDATE_DTYPE = np.dtype(
    [("raw_row", "<u4"), ("line", "<i8"), ("examples", "<u4"), ("input", "<u4"), ("output", "<u4"), ("domain", "<u2")]
)
"""One candidate of a shard, in the rows' order; `domain` is a number into the summary's `domains`."""


def raw_part_name(part: int) -> str:
    """The file of a raw shard's rows."""
    return f"{shard_name(part)}.rows"


def run_task(task: Task, report: Report, files: SharedFiles | None = None) -> Shard:
    """Do a task by its name, or find it done; `report` is told how many rows are done, `files` is where shards lie."""
    return TASKS[task["task"]](task, report, files or SharedFiles())


def read_source(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Cut a file into raw shards of `shardRecords` rows, part by part, in constant memory.

    Raises StorageError where the file can't be opened or the network fails to the last attempt.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return files.commit(task["folder"], lambda partial: _read_source(task, partial, report))
        except (SharedStorageError, Refused):
            raise
        except StorageError:
            if is_local(task["uri"]) or attempt == _ATTEMPTS:
                raise
            time.sleep(_RETRY_SECONDS * attempt)
    raise AssertionError("unreachable")


def _read_source(task: Task, folder: Path, report: Report) -> dict[str, Any]:
    reader = READERS[DataFormat(task["format"])]
    scratch = folder / ".scratch"
    parts: list[int] = []
    with open_uri(task["uri"], read_secret(task.get("secret")), allow_http=task.get("allowHttp", False)) as stream:
        rows = reader.read_rows(stream, task["name"], scratch)
        while (count := _write_part(folder / raw_part_name(len(parts)), rows, task["shardRecords"])) > 0:
            parts.append(count)
            report(sum(parts))
    shutil.rmtree(scratch, ignore_errors=True)
    return {"rows": parts}


def _write_part(path: Path, rows: Iterator[Any], limit: int) -> int:
    count = 0
    with path.open("wb") as stream:
        for row in islice(rows, limit):
            write_raw_row(stream, row)
            count += 1
    if not count:
        path.unlink()
    return count


@lru_cache(maxsize=4)
def _load_tokenizer(folder: str, template: str, new_tokens: tuple[str, ...]) -> "PreTrainedTokenizerBase":
    from llamero.model.bases import load_tokenizer

    return load_tokenizer(Path(folder), template, new_tokens)


def clean_shard(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Make candidates of a raw shard's rows: their records, tokens and hashes, and the rows that are rejected."""
    return files.commit(task["folder"], lambda partial: _clean_shard(task, partial, report, files))


def _clean_shard(task: Task, folder: Path, report: Report, files: SharedFiles) -> dict[str, Any]:
    # Here, since it takes seconds to import what knows tokenizers: a worker reads sources meanwhile.
    from llamero.data.clean import CleanCounts, CleanOptions, Rejected, clean_rows

    base = files.fetch_tokenizer(task["tokenizer"])
    tokenizer = _load_tokenizer(str(base), task["template"], tuple(task["newTokens"]))
    options = CleanOptions(
        source=DataSource.model_validate(task["source"]),
        source_name=task["sourceName"],
        file=task["file"],
        system=task.get("system"),
        sequence_length=task["sequenceLength"],
        long_records=task["longRecords"],
        domains=task["domains"],
    )
    counts, rejected, dropped = CleanCounts(), Counter[str](), 0
    domains: list[str] = []
    keys: list[tuple[bytes, bytes, int]] = []
    candidates: list[tuple[int, int, int, int, int, int]] = []
    with (
        files.borrow(task["raw"], [task["rows"]]) as source,
        (source / task["rows"]).open("rb") as raw,
        (folder / RECORDS_FILE).open("wb") as records,
        (folder / REJECTED_FILE).open("wb") as refused,
        TokenWriter(folder / TOKENS_FOLDER) as tokens,
    ):
        for outcome in clean_rows(read_raw_rows(raw), options, tokenizer, counts):
            if outcome.raw_row % _REPORT_ROWS == 0:
                report(counts.read)
            if isinstance(outcome, Rejected):
                rejected[outcome.rejection.reason] += 1
                _write_json(refused, {**outcome.rejection.to_dict(), "row": outcome.raw_row})
                continue
            for conversation, encoded in zip(outcome.conversations, outcome.encoded, strict=True):
                _write_json(records, conversation.to_dict())
                tokens.append(encoded.ids, encoded.mask, conversation.id)
            if outcome.domain not in domains:
                domains.append(outcome.domain)
            keys.append((outcome.content_hash, outcome.prompt_hash, outcome.line))
            candidates.append(_describe_candidate(outcome, domains))
            dropped += outcome.dropped_pairs
    np.save(folder / CANDIDATES_FILE, np.array(candidates, dtype=CANDIDATE_DTYPE))
    np.save(folder / INDEX_FILE, _build_index(keys))
    return {
        "read": counts.read,
        "candidates": len(candidates),
        "rejected": dict(sorted(rejected.items())),
        "droppedPairs": dropped,
        "domains": domains,
        "tooLong": counts.too_long.to_json(),
        "statistics": counts.statistics.to_json(),
    }


def _describe_candidate(outcome: "Candidate", domains: list[str]) -> tuple[int, int, int, int, int, int]:
    return (
        outcome.raw_row,
        outcome.line,
        len(outcome.conversations),
        outcome.input_length,
        outcome.output_length,
        domains.index(outcome.domain),
    )


def _build_index(keys: list[tuple[bytes, bytes, int]]) -> NDArray:
    index = np.zeros(len(keys), dtype=INDEX_DTYPE)
    content = np.frombuffer(b"".join(key for key, _, _ in keys), dtype=">u8").reshape(-1, 2)
    index["hi"], index["lo"] = content[:, 0], content[:, 1]
    index["prompt"] = np.frombuffer(b"".join(prompt for _, prompt, _ in keys), dtype=">u8")
    index["row"] = np.arange(len(keys))
    index["line"] = [line for _, _, line in keys]
    return np.sort(index, order=["hi", "lo", "row"])


def _write_json(stream: IO[bytes], row: dict[str, Any]) -> None:
    stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def read_listing(task: Task) -> dict[str, Any]:
    """All clean shards of a preparation (`shards`, `shardSources`, `origins`). Raises Obsolete where it is over."""
    content = read_file(task["listing"])
    if content is None:
        raise Obsolete(f"{task['listing']} is gone")
    listing: dict[str, Any] = orjson.loads(content)
    return listing


class Obsolete(Exception):
    """A task of a preparation that has ended: nobody waits for it."""


def _load_partition(
    task: Task, listing: dict[str, Any], files: SharedFiles
) -> tuple[NDArray, NDArray[np.uint32], NDArray[np.uint32]]:
    parts = [
        np.array(
            slice_partition(
                _map_array(files.fetch(uri, [INDEX_FILE]) / INDEX_FILE), task["partition"], task["partitions"]
            )
        )
        for uri in listing["shards"]
    ]
    return stack_indexes(parts, range(len(parts)), listing["shardSources"])


def _map_array(path: Path) -> NDArray:
    array: NDArray = np.load(path, allow_pickle=False)
    return array


def cap_sources(task: Task, report: Report, files: SharedFiles) -> Shard:
    """For each source with maxRecords: the smallest orders of its distinct records in one range of hashes."""

    def build(folder: Path) -> dict[str, Any]:
        index, _, sources = _load_partition(task, read_listing(task), files)
        for source, count in task["maxRecords"].items():
            orders = distinct_orders(index, sources, int(source), task["seed"])
            np.save(folder / f"{source}.npy", select_smallest(orders, count))
        return {}

    return files.commit(task["folder"], build)


def judge_candidates(task: Task, report: Report, files: SharedFiles) -> Shard:
    """The verdicts on the candidates of one range of hashes."""

    def build(folder: Path) -> dict[str, Any]:
        listing = read_listing(task)
        index, shards, sources = _load_partition(task, listing, files)
        rule = SelectionRule(
            seed=task["seed"],
            evaluation_fraction=task["evaluationFraction"],
            cap_thresholds=tuple(int(t) for t in task["capThresholds"]),
        )
        verdicts = judge(index, shards, sources, rule)
        np.save(folder / VERDICTS_FILE, verdicts)
        kept = verdicts["verdict"]
        sides = {
            side: np.bincount(verdicts["shard"][kept == verdict], minlength=len(listing["shards"])).tolist()
            for verdict, side in SIDES.items()
        }
        return {"sides": sides}

    return files.commit(task["folder"], build)


def write_shard(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Lay out what a shard keeps: records and tokens of each side, and all its rejections in the rows' order."""

    def build(folder: Path) -> dict[str, Any]:
        with files.borrow(task["clean"]) as source:
            return _write_shard(task, folder, source, files)

    return files.commit(task["folder"], build)


def _write_shard(task: Task, folder: Path, source: Path, files: SharedFiles) -> dict[str, Any]:
    origins = read_listing(task)["origins"]
    candidates = _map_array(source / CANDIDATES_FILE)
    verdicts = _collect_verdicts(task, len(candidates), files)
    tokens = TokenSet.open(source / TOKENS_FOLDER)
    statistics = Statistics()
    lengths = {side: {"records": 0, "examples": 0, "tokens": 0, "targetTokens": 0} for side in SIDES.values()}
    rejections: list[tuple[int, dict[str, Any]]] = []
    example = 0
    with (
        (source / RECORDS_FILE).open("rb") as records,
        _SideWriter(folder / "train") as train,
        _SideWriter(folder / "evaluation") as evaluation,
    ):
        writers = {Verdict.TRAIN: train, Verdict.EVALUATION: evaluation}
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            count = int(candidate["examples"])
            lines = [records.readline() for _ in range(count)]
            examples = range(example, example + count)
            example += count
            decision = Verdict(int(verdict["verdict"]))
            if decision not in SIDES:
                row = _build_rejection(decision, lines[0], verdict, origins)
                rejections.append((int(candidate["raw_row"]), row))
                continue
            side = lengths[SIDES[decision]]
            side["records"] += 1
            side["examples"] += count
            for line, number in zip(lines, examples, strict=True):
                ids, mask = tokens[number]
                writers[decision].add(line, ids, mask, tokens.record_id(number))
                side["tokens"] += len(ids)
            domain = task["domains"][int(candidate["domain"])]
            statistics.of(domain).add(int(candidate["input"]), int(candidate["output"]))
        for decision, name in SIDES.items():
            lengths[name]["targetTokens"] = writers[decision].target_tokens
    reasons, samples = _write_rejections(folder / REJECTED_FILE, source / REJECTED_FILE, rejections)
    return {"sides": lengths, "rejected": reasons, "samples": samples, "statistics": statistics.to_json()}


def _collect_verdicts(task: Task, count: int, files: SharedFiles) -> NDArray:
    """The shard's verdicts out of each range's, in the rows' order."""
    parts = []
    for uri in task["verdicts"]:
        table = np.load(files.fetch(uri, [VERDICTS_FILE]) / VERDICTS_FILE, mmap_mode="r", allow_pickle=False)
        start, end = np.searchsorted(table["shard"], [task["shard"], task["shard"] + 1])
        parts.append(np.array(table[start:end]))
    verdicts = np.sort(np.concatenate(parts), order="row")
    if len(verdicts) != count:
        raise ValueError(f"{task['clean']} has {count} candidates and {len(verdicts)} verdicts")
    return verdicts


class _SideWriter:
    """Records and tokens of one side of the split; files appear with the first record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: IO[bytes] | None = None
        self._tokens: TokenWriter | None = None

    @property
    def target_tokens(self) -> int:
        return self._tokens.target_tokens if self._tokens else 0

    def add(self, line: bytes, ids: NDArray[np.uint32], mask: NDArray[np.uint8], identity: str) -> None:
        if self._tokens is None or self._records is None:
            self._folder.mkdir()
            self._records = (self._folder / RECORDS_FILE).open("wb")
            self._tokens = TokenWriter(self._folder / TOKENS_FOLDER).__enter__()
        self._records.write(line)
        self._tokens.append(ids, mask, identity)

    def __enter__(self) -> "_SideWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._records is not None:
            self._records.close()
        if self._tokens is not None:
            self._tokens.__exit__(*error)


def _build_rejection(verdict: Verdict, line: bytes, entry: Any, origins: list[dict[str, str]]) -> dict[str, Any]:
    conversation = Conversation.from_dict(orjson.loads(line))
    if verdict is Verdict.CAPPED:
        reason, detail = RejectionReason.CAPPED, "Not among the records that weight and maxRecords let in."
    else:
        first = origins[int(entry["first_shard"])]
        reason = RejectionReason.DUPLICATE
        detail = f"The same as record {int(entry['first_line'])} of {first['file']} (source {first['source']})."
    text = show_turns(conversation.messages, conversation.meta.get("input", ""))
    return {
        "source": conversation.source,
        "file": conversation.file,
        "line": conversation.line,
        "reason": reason,
        "detail": detail,
        "text": text[:MAX_REJECTED_TEXT],
    }


def _write_rejections(
    target: Path, earlier: Path, later: list[tuple[int, dict[str, Any]]]
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """All rejections of a shard in the rows' order, counted by reason, with the first few of each."""
    with earlier.open("rb") as stream:
        rows = [(row.pop("row"), row) for row in map(orjson.loads, stream)]
    reasons: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    with target.open("wb") as out:
        for _, row in sorted([*rows, *later], key=lambda pair: pair[0]):
            reasons[row["reason"]] += 1
            if reasons[row["reason"]] <= SAMPLES_PER_REASON:
                samples.append(row)
            _write_json(out, row)
    return dict(sorted(reasons.items())), samples


TASKS: dict[str, Callable[[Task, Report, SharedFiles], Shard]] = {
    "read": read_source,
    "clean": clean_shard,
    "cap": cap_sources,
    "judge": judge_candidates,
    "write": write_shard,
}

"""The task `clean`: a raw shard's rows made into candidates, by `clean`, with an index of their hashes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.applying import open_applier
from llamero.data.clean import CleanCounts, CleanOptions, Rejected, clean_rows
from llamero.data.folders import RecordWriter
from llamero.data.measure import open_measure
from llamero.data.selection import INDEX_DTYPE
from llamero.data.shards import Shard, read_raw_rows
from llamero.data.shared import SharedFiles
from llamero.data.taskfiles import INDEX_FILE, REJECTED_FILE, REPORT_ROWS, Report, Task, write_json
from llamero.spec.job import DataSource


def clean_shard(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Make candidates of a raw shard's rows: their records, tokens and hashes, and the rows that are rejected."""
    return files.commit(task["folder"], lambda partial: _clean_shard(task, partial, report, files))


def _clean_shard(task: Task, folder: Path, report: Report, files: SharedFiles) -> dict[str, Any]:
    measure, applier = open_measure(task, files), open_applier(task, files)
    options = CleanOptions(
        source=DataSource.model_validate(task["source"]),
        source_name=task["sourceName"],
        file=task["file"],
        system=task.get("system"),
        domains=task["domains"],
        hashes_first=task["templateVariants"],
    )
    counts, rejected, done = CleanCounts(), Counter[str](), 0
    keys: list[tuple[bytes, bytes, int, int]] = []
    with (
        files.borrow(task["raw"], [task["rows"]]) as source,
        (source / task["rows"]).open("rb") as raw,
        (folder / REJECTED_FILE).open("wb") as refused,
        RecordWriter(folder, measure.has_tokens) as records,
    ):
        for outcome in clean_rows(read_raw_rows(raw), options, measure, applier, counts):
            done += 1
            if done % REPORT_ROWS == 0:
                report(done)
            if isinstance(outcome, Rejected):
                rejected[outcome.line["reason"]] += 1
                write_json(refused, outcome.line)
                continue
            records.add(outcome.record, outcome.measured, outcome.prompt_hash)
            keys.append((outcome.content_hash, outcome.prompt_hash, outcome.record.row, outcome.record.line))
    np.save(folder / INDEX_FILE, _build_index(keys))
    return {
        "read": counts.read,
        "candidates": len(keys),
        "rejected": dict(sorted(rejected.items())),
        "tally": counts.tally.to_json(),
        "statistics": counts.statistics.to_json(),
    }


def _build_index(keys: list[tuple[bytes, bytes, int, int]]) -> NDArray:
    index = np.zeros(len(keys), dtype=INDEX_DTYPE)
    content = np.frombuffer(b"".join(key[0] for key in keys), dtype=">u8").reshape(-1, 2)
    index["hi"], index["lo"] = content[:, 0], content[:, 1]
    index["prompt"] = np.frombuffer(b"".join(key[1] for key in keys), dtype=">u8")
    index["row"] = [key[2] for key in keys]
    index["line"] = [key[3] for key in keys]
    return np.sort(index, order=["hi", "lo", "row"])

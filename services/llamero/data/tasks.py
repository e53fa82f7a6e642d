"""The tasks of the data phase: plain functions of JSON dicts that hold URIs, so that a process here or a queue's worker runs the same.

`read` cuts a file into raw shards (`generate` has a model make the rows), `clean` makes candidates of one, `cap` and `settle` decide over
all candidates by their hashes, `set` is a task of a step across records, `refine` puts record steps to a shard, and `write` lays out what
one shard keeps. Each commits its folder by a manifest; which task follows which is the pipeline's.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from llamero.data.applying import build_context
from llamero.data.cleaning import clean_shard
from llamero.data.reading import read_task_rows
from llamero.data.refining import do_set_task, refine_shard
from llamero.data.settling import cap_sources, settle_candidates
from llamero.data.shards import Shard, write_raw_row
from llamero.data.shared import SharedFiles, SharedStorageError
from llamero.data.taskfiles import Obsolete as Obsolete
from llamero.data.taskfiles import Report as Report
from llamero.data.taskfiles import Task as Task
from llamero.data.taskfiles import raw_part_name
from llamero.data.taskfiles import read_listing as read_listing
from llamero.data.writing import write_shard
from llamero.spec.job import DataSource
from llamero.storage import Refused, StorageError, is_local

_ATTEMPTS = 3
_RETRY_SECONDS = 2.0


def run_task(task: Task, report: Report, files: SharedFiles | None = None) -> Shard:
    """Do a task by its name, or find it done; `report` is told how many rows are done, `files` is where shards lie."""
    return TASKS[task["task"]](task, report, files or SharedFiles())


def read_source(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Cut a file into raw shards of `shardRecords` rows, part by part, in constant memory.

    Raises StorageError where the file can't be opened or the network fails to the last attempt.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return files.commit(task["folder"], lambda folder: _read_source(task, folder, report))
        except (SharedStorageError, Refused):
            raise
        except StorageError:
            if is_local(task["uri"]) or attempt == _ATTEMPTS:
                raise
            time.sleep(_RETRY_SECONDS * attempt)
    raise AssertionError("unreachable")


def _read_source(task: Task, folder: Path, report: Report) -> dict[str, Any]:
    scratch = folder / ".scratch"
    parts = _write_parts(folder, read_task_rows(task, scratch), task["shardRecords"], report)
    shutil.rmtree(scratch, ignore_errors=True)
    return {"rows": parts}


def generate_source(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Have a model make a source's rows, refused ones among them, and cut them into raw shards as `read` does."""
    from llamero.data.asking.ledger import SUMMARY_KEY
    from llamero.data.generating import generate_rows

    context = build_context(task["context"], None, files)
    source = DataSource.model_validate(task["source"])

    def build(folder: Path) -> dict[str, Any]:
        made = generate_rows(source, context)
        parts = _write_parts(folder, made, task["shardRecords"], report)
        growth = made.growth.describe() if made.growth else ""
        return {"rows": parts, SUMMARY_KEY: [a.to_dict() for a in made.accounts], "growth": growth}

    return files.commit(task["folder"], build)


def _write_parts(folder: Path, rows: Iterator[Any], limit: int, report: Report) -> list[int]:
    parts: list[int] = []
    while (count := _write_part(folder / raw_part_name(len(parts)), rows, limit)) > 0:
        parts.append(count)
        report(sum(parts))
    return parts


def _write_part(path: Path, rows: Iterator[Any], limit: int) -> int:
    count = 0
    with path.open("wb") as stream:
        for row in islice(rows, limit):
            write_raw_row(stream, row)
            count += 1
    if not count:
        path.unlink()
    return count


TASKS: dict[str, Callable[[Task, Report, SharedFiles], Shard]] = {
    "read": read_source,
    "generate": generate_source,
    "clean": clean_shard,
    "cap": cap_sources,
    "settle": settle_candidates,
    "set": do_set_task,
    "refine": refine_shard,
    "write": write_shard,
}

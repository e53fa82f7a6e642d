"""The human tasks that a pool grows from: Self-Instruct's seed tasks, or the first exchange of any records."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from llamero.data.errors import DataError
from llamero.data.readers import READERS, RowError
from llamero.data.readers.draft import Draft
from llamero.data.readers.seed_tasks import INSTANCES, parse_seed_task
from llamero.data.reading import build_read_task, read_task_rows
from llamero.data.rows import BrokenRow, Row
from llamero.data.sources import find_files
from llamero.spec.job import DataSource


@dataclass(frozen=True)
class Task:
    """An instruction with one instance. `name` is how lineage calls it; `is_classification` is None where nobody said."""

    name: str
    instruction: str
    input: str
    output: str
    is_classification: bool | None = None


def read_seeds(source: DataSource, allow_http: bool = False) -> list[Task]:
    """The tasks of all files that the source's `uri` names, in their order, an instruction once. Raises DataError with the place."""
    plain = source.model_copy(update={"generate": None})
    seeds: dict[str, Task] = {}
    for file in find_files([plain], allow_http):
        with tempfile.TemporaryDirectory() as scratch:
            for row in read_task_rows(build_read_task(file, plain, allow_http), Path(scratch) / "rows"):
                task = _read_seed(row, plain, row.file or file.name)
                seeds.setdefault(task.instruction, task)
    if not seeds:
        raise DataError(
            f"{source.uri} holds no seed tasks to grow a pool from: put some there, such as Self-Instruct's seed_tasks.jsonl."
        )
    return list(seeds.values())


def _read_seed(row: Row, source: DataSource, file: str) -> Task:
    where = f"{file}, row {row.line}"
    if isinstance(row, BrokenRow):
        raise DataError(f"{where} of the seeds can't be read: {row.detail} Mend it, or take it out.")
    try:
        value = orjson.loads(row.json)
        is_seed_task = isinstance(value, dict) and INSTANCES in value
        draft = parse_seed_task(value) if is_seed_task else READERS[source.format].parse(value, source)
        instruction, output = _find_exchange(draft)
    except (orjson.JSONDecodeError, RowError) as error:
        raise DataError(f"{where} of the seeds is no task: {error} Mend it, or take it out.") from None
    name = str(draft.meta.get("sourceId") or f"{file}:{row.line}")
    return Task(name, instruction, draft.input.strip(), output, draft.meta.get("classification"))


def _find_exchange(draft: Draft) -> tuple[str, str]:
    turns: Iterator[tuple[str, str]] = ((m.role, m.content.strip()) for m in draft.messages)
    said = dict(reversed(list(turns)))
    if not said.get("user") or not said.get("assistant"):
        raise RowError("empty", "It has no instruction or no answer.")
    return said["user"], said["assistant"]

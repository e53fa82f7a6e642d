"""Self-Instruct's seed tasks: rows of `instruction`, `instances` of `input` and `output`, and whether the task is a classification.

A row makes as many records as it has instances: `read_seed_rows` takes them apart, so that each is a row of the same line.
"""

from collections.abc import Iterator
from typing import IO, Any

import orjson

from llamero.data.readers.draft import Draft, RowError, make_exchange, need_object, read_text
from llamero.data.rows import RawRow, Row, read_rows
from llamero.spec.records import RejectionReason

INSTANCES = "instances"


def read_seed_rows(stream: IO[bytes], name: str) -> Iterator[Row]:
    """The file's rows, one for each instance."""
    for row in read_rows(stream, name):
        if isinstance(row, RawRow):
            yield from _take_apart(row)
        else:
            yield row


def _take_apart(row: RawRow) -> Iterator[RawRow]:
    try:
        task = orjson.loads(row.json)
    except orjson.JSONDecodeError:
        yield row
        return
    instances = task.get(INSTANCES) if isinstance(task, dict) else None
    if not isinstance(instances, list) or len(instances) < 2:
        yield row
        return
    for instance in instances:
        yield RawRow(row.line, orjson.dumps({**task, INSTANCES: [instance]}))


def parse_seed_task(row: Any) -> Draft:
    """The row's instruction with its (first) instance. Raises RowError."""
    row = need_object(row)
    instruction = read_text(row, "instruction")
    instances = row.get(INSTANCES)
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise RowError(
            RejectionReason.MALFORMED, "The field `instances` is no list of objects with `input` and `output`."
        )
    given, output = read_text(instances[0], "input", required=False), read_text(instances[0], "output")
    meta: dict[str, Any] = {}
    if isinstance(row.get("id"), str):
        meta["sourceId"] = row["id"][:256]
    if isinstance(row.get("is_classification"), bool):
        meta["classification"] = row["is_classification"]
    return make_exchange(instruction, given, output, meta=meta)

"""Rows of any JSONL, JSON, CSV or Parquet file, by a mapping that says which column holds what."""

from typing import Any

from llamero.data.readers.draft import UNLABELLED, Draft, RowError, as_text, make_exchange, need_object, read_tags
from llamero.data.readers.messages import read_turns
from llamero.spec.job import ColumnMapping
from llamero.spec.records import Message, RejectionReason


def parse_record(row: Any, columns: ColumnMapping) -> Draft:
    """The row's exchange or turns. Raises RowError where a mapped column is missing."""
    row = need_object(row)
    system = _read_optional(row, columns.system)
    tags = read_tags(find_column(row, columns.tags)) if columns.tags and has_column(row, columns.tags) else ()
    identity = _read_optional(row, columns.id)
    meta = {"sourceId": identity[:256]} if identity else {}
    if columns.messages:
        turns = read_turns(find_column(row, columns.messages), columns.messages)
        if system.strip() and not (turns and turns[0].role == "system"):
            turns = (Message("system", system), *turns)
        return Draft(turns, tags=tags, meta=meta)
    if columns.output and not columns.instruction and not columns.input:
        return _draft_text(as_text(find_column(row, columns.output), columns.output), system, tags, meta)
    # `input` is additional where there is an instruction, and the prompt itself where there is none.
    instruction = as_text(find_column(row, columns.instruction), columns.instruction) if columns.instruction else ""
    if columns.instruction:
        given = _read_optional(row, columns.input)
    else:
        given = as_text(find_column(row, columns.input or "input"), columns.input or "input")
    output = columns.output or "output"
    return make_exchange(instruction, given, as_text(find_column(row, output), output), system, tags=tags, meta=meta)


def _draft_text(text: str, system: str, tags: tuple[str, ...], meta: dict[str, Any]) -> Draft:
    """A text without an instruction: the answer to an empty prompt, which a step is going to write."""
    return make_exchange("", "", text, system, tags=tags, meta={**meta, UNLABELLED: True})


def has_column(row: Any, path: str) -> bool:
    """Whether the row has the column."""
    try:
        find_column(row, path)
    except RowError:
        return False
    return True


def find_column(row: Any, path: str) -> Any:
    """A column's value. A name as it stands goes first, then dots lead into objects and, by number, into lists."""
    if isinstance(row, dict) and path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise RowError(RejectionReason.MALFORMED, f"The column `{path}` is missing.")
    return value


def _read_optional(row: Any, path: str | None) -> str:
    if not path or not has_column(row, path):
        return ""
    return as_text(find_column(row, path), path)

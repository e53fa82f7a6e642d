"""The rows that growing a pool of instructions leaves (`llamero.data.generating`): made records, and candidates that were refused.

A made row is `{"instruction", "input", "output", "origin"}`; a refused one has `rejected` besides: `{"rule", "detail", "value", "threshold"}`.
"""

from typing import Any

import orjson

from llamero.data.readers.draft import Draft, RowError, make_exchange, need_object, read_text
from llamero.data.rows import RawRow
from llamero.data.steps.record import Drop
from llamero.spec.records import RejectionReason


def build_made_row(number: int, instruction: str, given: str, output: str, origin: dict[str, Any]) -> RawRow:
    """A made record. `number` counts the rows of the source from 1, `origin` is its lineage."""
    row = {"instruction": instruction, "input": given, "output": output, "origin": origin}
    return RawRow(number, orjson.dumps(row))


def build_refused_row(number: int, candidate: dict[str, Any], origin: dict[str, Any], drop: Drop) -> RawRow:
    """A candidate (what there is of instruction, input and output) that was refused, and why."""
    refused: dict[str, Any] = {"rule": drop.rule, "detail": drop.detail}
    if drop.value is not None:
        refused |= {"value": drop.value, "threshold": drop.threshold}
    return RawRow(number, orjson.dumps({**candidate, "origin": origin, "rejected": refused}))


def parse_generated(row: Any) -> Draft:
    """The record of a made row, its lineage in `meta.origin`.

    Raises RowError (reason `generate`) with rule, value and threshold for a refused one.
    """
    row = need_object(row)
    refused = row.get("rejected")
    if refused is not None:
        raise RowError(
            RejectionReason.GENERATE,
            refused["detail"],
            rule=refused["rule"],
            value=refused.get("value"),
            threshold=refused.get("threshold"),
        )
    meta = {"origin": [row["origin"]]}
    return make_exchange(
        read_text(row, "instruction"), read_text(row, "input", required=False), read_text(row, "output"), meta=meta
    )

"""What a reader makes of one row: a draft of a conversation, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llamero.spec.records import Message, RejectionReason

UNLABELLED: Final = "unlabelled"
"""In the meta of a text without an instruction, until one is written for it (step `backTranslate`)."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Turns as they stand in the row, before they are cleaned. `input` belongs to the first user turn of a single exchange."""

    messages: tuple[Message, ...]
    input: str = ""
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


class RowError(Exception):
    """A row that yields no record: a reason of `RejectionReason` and a sentence. `draft` holds what could be read of it.

    `rule`, `value` and `threshold` say more where a rule with a number refused it (see `steps.record.Drop`).
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        draft: Draft | None = None,
        rule: str | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.draft = draft
        self.rule, self.value, self.threshold = rule, value, threshold


def need_object(row: Any) -> dict[str, Any]:
    """The row as a JSON object. Raises RowError where it is something else."""
    if not isinstance(row, dict):
        raise RowError(RejectionReason.MALFORMED, f"The row is {_name_type(row)}, where an object is needed.")
    return row


def read_text(row: Mapping[str, Any], key: str, required: bool = True) -> str:
    """A field's text; an absent or null optional field is nothing. Raises RowError for anything else."""
    value = row.get(key)
    if value is None and not required:
        return ""
    if key not in row:
        raise RowError(RejectionReason.MALFORMED, f"The field `{key}` is missing.")
    if not isinstance(value, str):
        raise RowError(RejectionReason.MALFORMED, f"The field `{key}` is {_name_type(value)}, where text is needed.")
    return value


def as_text(value: Any, name: str) -> str:
    """A value's text, where columns may be typed: numbers as they are written, null as nothing. Raises RowError for lists and objects."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    raise RowError(RejectionReason.MALFORMED, f"The field `{name}` is {_name_type(value)}, where text is needed.")


def read_tags(value: Any) -> tuple[str, ...]:
    """Tags from a list, `<a><b>`, `|a|b|`, or a string separated by commas; lower case."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(str(t).strip().lower() for t in value if isinstance(t, (str, int)) and str(t).strip())
    text = str(value).strip()
    if text.startswith("<") and text.endswith(">"):
        parts = text[1:-1].split("><")
    elif text.startswith("|"):
        parts = text.split("|")
    else:
        parts = text.split(",")
    return tuple(p.strip().lower() for p in parts if p.strip())


def make_exchange(instruction: str, input: str, output: str, system: str = "", **rest: Any) -> Draft:
    """A draft of one question and its answer. An input without an instruction is the question itself."""
    if not instruction.strip():
        instruction, input = input, ""
    turns = (Message("user", instruction), Message("assistant", output))
    return Draft((Message("system", system), *turns) if system.strip() else turns, input=input, **rest)


def _name_type(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")

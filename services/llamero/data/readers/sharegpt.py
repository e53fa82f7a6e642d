"""ShareGPT: rows of `conversations`, each turn with `from` (human, gpt, …) and `value`."""

from typing import Any

from llamero.data.html import strip_interface_remains
from llamero.data.readers.draft import Draft, RowError, need_object, read_text
from llamero.data.readers.messages import read_turns
from llamero.spec.records import Message, RejectionReason

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


def parse_sharegpt(row: Any) -> Draft:
    """The row's turns, without what the chat page left in them. Raises RowError."""
    row = need_object(row)
    turns = row.get("conversations", row.get("conversation"))
    meta = {"sourceId": str(row["id"])[:256]} if isinstance(row.get("id"), (str, int)) else {}
    if turns is None and "messages" in row:
        return Draft(read_turns(row["messages"], "messages"), meta=meta)
    if not isinstance(turns, list):
        raise RowError(RejectionReason.MALFORMED, "The field `conversations` is missing or no list.")
    return Draft(tuple(_read_turn(turn, number) for number, turn in enumerate(turns, 1)), meta=meta)


def _read_turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
        raise RowError(RejectionReason.MALFORMED, f"Turn {number} lacks `from` or `value`.")
    role = _ROLES.get(turn["from"].strip().lower())
    if role is None:
        raise RowError(
            RejectionReason.BAD_TURNS, f"Turn {number} is from `{turn['from'][:40]}`, neither human nor gpt."
        )
    return Message(role, strip_interface_remains(read_text(turn, "value")))

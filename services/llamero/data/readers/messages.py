"""OpenAI's messages: rows of `messages`, each with a role (system, user, assistant, tool) and content."""

from typing import Any

import orjson

from llamero.data.readers.draft import Draft, RowError, as_text, need_object
from llamero.spec.records import ROLES, Message, RejectionReason

_SAME_ROLES = {"developer": "system", "function": "tool"}


def parse_messages(row: Any) -> Draft:
    """The row's turns. Raises RowError."""
    row = need_object(row)
    if "messages" not in row:
        raise RowError(RejectionReason.MALFORMED, "The field `messages` is missing.")
    return Draft(read_turns(row["messages"], "messages"))


def read_turns(value: Any, name: str) -> tuple[Message, ...]:
    """A list of {role, content} as turns; calls of tools become their JSON. Raises RowError."""
    if not isinstance(value, list):
        raise RowError(RejectionReason.MALFORMED, f"The field `{name}` is no list of turns.")
    return tuple(_read_turn(turn, number) for number, turn in enumerate(value, 1))


def _read_turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise RowError(RejectionReason.MALFORMED, f"Turn {number} has no role.")
    role = _SAME_ROLES.get(turn["role"], turn["role"])
    if role not in ROLES:
        raise RowError(
            RejectionReason.BAD_TURNS,
            f"Turn {number} has the role `{turn['role'][:40]}`; known are {', '.join(ROLES)}.",
        )
    content = _read_content(turn.get("content"), number)
    calls = turn.get("tool_calls") or turn.get("function_call")
    if calls and role == "assistant":
        content = "\n".join(part for part in (content, orjson.dumps(calls).decode()) if part)
    return Message(role, content)


def _read_content(content: Any, number: int) -> str:
    if not isinstance(content, list):
        return as_text(content, f"content of turn {number}")
    parts: list[str] = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "text":
            parts.append(as_text(part.get("text"), f"content of turn {number}"))
        else:
            kind = str(part.get("type")) if isinstance(part, dict) else "no object"
            raise RowError(RejectionReason.MALFORMED, f"Turn {number} holds a part that is no text ({kind[:40]}).")
    return "\n".join(parts)

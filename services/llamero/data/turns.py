"""Which turns make a conversation: a system prompt or none, then user and assistant in turn, tools between, an assistant's last."""

from collections.abc import Sequence
from itertools import pairwise

from llamero.data.readers.draft import RowError
from llamero.spec.records import Message, RejectionReason

_MAY_FOLLOW: dict[str, frozenset[str]] = {
    "user": frozenset({"assistant"}),
    "assistant": frozenset({"user", "tool"}),
    "tool": frozenset({"tool", "assistant"}),
}


def arrange_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns from the first user's to the last assistant's, after the system prompt.

    Leading assistant turns and trailing user or tool turns are cut. Raises RowError (bad-turns) where roles don't alternate or
    nothing is left.
    """
    head = 0
    while head < len(messages) and messages[head].role == "system":
        head += 1
    system = messages[:head]
    turns = list(messages[head:])
    first = next((i for i, m in enumerate(turns) if m.role == "user"), len(turns))
    last = next((i for i in range(len(turns) - 1, -1, -1) if turns[i].role == "assistant"), -1)
    for cut in turns[:first]:
        if cut.role == "system":
            raise RowError(RejectionReason.BAD_TURNS, "A system turn stands after the first turn.")
    if last < first:
        raise RowError(RejectionReason.BAD_TURNS, "No assistant turn answers a user turn.")
    kept = turns[first : last + 1]
    for number, (before, after) in enumerate(pairwise(kept), start=first + head + 2):
        if after.role not in _MAY_FOLLOW[before.role]:
            raise RowError(
                RejectionReason.BAD_TURNS, f"Turn {number} ({after.role}) can't follow one of {before.role}."
            )
    for extra in turns[last + 1 :]:
        if extra.role == "system":
            raise RowError(RejectionReason.BAD_TURNS, "A system turn stands after the first turn.")
    if not system:
        return tuple(kept)
    return (Message("system", "\n\n".join(m.content for m in system)), *kept)


def split_pairs(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The system part, and the turn pairs: each from a user turn to the last turn before the next one."""
    head = 1 if messages and messages[0].role == "system" else 0
    pairs: list[list[Message]] = []
    for message in messages[head:]:
        if message.role == "user":
            pairs.append([])
        pairs[-1].append(message)
    return tuple(messages[:head]), [tuple(pair) for pair in pairs]

"""Dialogues as DailyDialog has them: a line a dialogue, each turn ended by `__eou__`; the first speaker is the user."""

from typing import Any, Literal

from llamero.data.readers.draft import Draft, RowError, make_exchange
from llamero.spec.records import Message, RejectionReason

END_OF_TURN = "__eou__"
CONTINUE_INSTRUCTION = "Continue the daily dialogue."


def parse_dialog(row: Any, profile: Literal["first-turn", "all-turns"]) -> Draft:
    """The line's turns: all of them, or by `first-turn` the first as input and the second as output. Raises RowError."""
    if not isinstance(row, str):
        raise RowError(RejectionReason.MALFORMED, "The row is no line of text.")
    turns = row.split(END_OF_TURN)
    if not turns[-1].strip():
        turns.pop()
    if profile == "first-turn":
        if len(turns) < 2:
            raise RowError(RejectionReason.BAD_TURNS, "The dialogue has fewer than two turns.")
        return make_exchange(CONTINUE_INSTRUCTION if turns[0].strip() else "", turns[0], turns[1])
    return Draft(tuple(Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns)))

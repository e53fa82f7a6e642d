"""Answers each prompt anew, guided by principles that the model is told and the record does not show (arXiv:2305.03047).

The last answer is written anew, with the conversation before it; an answer that speaks of its principles is refused.
"""

import re
from collections.abc import Sequence
from typing import Final

from llamero.data.asking.client import Backoff
from llamero.data.asking.questions import Question, Unanswered
from llamero.data.steps.asked import Asking, ask_groups
from llamero.data.steps.lineage import note_change, quarantine
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.tagged import read_tagged
from llamero.spec.records import Message
from llamero.spec.steps import PrinciplesStep

STEP: Final = "principles"

_TASK = (
    "You answer people's questions. These principles guide you:\n{principles}\n\nConsider which of them apply, then answer accordingly. Do not "
    "mention the principles, their numbers or these directions. Give your answer between <answer> and </answer>, and nothing else."
)
_MENTION = re.compile(
    r"\bprinciples?\s*(?:#|no\.?\s*)?\d+|\b(?:my|these|the\s+(?:given|above))\s+(?:guiding\s+)?principles\b",
    re.IGNORECASE,
)


def build(options: PrinciplesStep, context: StepContext) -> "Principles":
    """The step."""
    return Principles(options, context)


class Principles:
    """Answers the last prompt of a record anew; `accounts` tells what that took."""

    def __init__(self, options: PrinciplesStep, context: StepContext, backoff: Backoff | None = None) -> None:
        self._options = options
        self._asking = Asking(options.model, STEP, context, backoff)
        self.accounts = self._asking.accounts
        numbered = "\n".join(f"{number}. {text}" for number, text in enumerate(options.principles, 1))
        self._task = Message("system", _TASK.format(principles=numbered))

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        with self._asking.open() as asker:
            answers = ask_groups(asker, [[self._ask(r)] for r in records], read_tagged("answer"))
        return [self._take(record, given) for record, given in zip(records, answers, strict=True)]

    def _ask(self, record: Record) -> Question:
        last = max(i for i, m in enumerate(record.messages) if m.role == "assistant")
        return Question((self._task, *show_prompt(record, last)))

    def _take(self, record: Record, given: tuple[str, ...] | Unanswered) -> Record:
        if isinstance(given, Unanswered):
            return quarantine(record, STEP, "unanswered", f"The model gave no usable answer: {given.reason}")
        mention = _MENTION.search(given[0])
        # A prompt about principles may well be answered with the word.
        if mention is not None and not _MENTION.search(record.prompt):
            return quarantine(record, STEP, "scaffold", f"The answer speaks of its principles: “{mention[0]}”.")
        if given[0] == record.answer:
            return record
        changed = record.with_answer(given[0])
        return note_change(changed, STEP, self._options.model.model, {"answer": record.answer})


def show_prompt(record: Record, until: int) -> tuple[Message, ...]:
    """The turns before number `until` as a model is asked them: the input with the first user turn, the system's as a turn of its own."""
    turns = list(record.messages[:until])
    if record.input:
        first = next(i for i, m in enumerate(turns) if m.role == "user")
        turns[first] = Message("user", f"{turns[first].content}\n\n{record.input}")
    return tuple(turns)

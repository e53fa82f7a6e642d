"""Deepens or broadens instructions and answers them (Evol-Instruct, arXiv:2304.12244), and refuses evolutions that went wrong.

One operation a round is chosen for a record by its content. An evolution that is refused leaves the record as it was after the round before,
with the reason in `meta.quarantined`. Records of several exchanges have no one instruction and pass as they are.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Final

import numpy as np

from llamero.data.asking.client import Backoff
from llamero.data.asking.questions import Question, Unanswered
from llamero.data.content import fold_text, hash_content
from llamero.data.rouge import measure_rouge
from llamero.data.steps.asked import Asking, ask_groups, build_question
from llamero.data.steps.lineage import note_change, quarantine
from llamero.data.steps.principles import show_prompt
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.tagged import read_tagged, strip_thoughts, tag
from llamero.spec.records import Message
from llamero.spec.steps import EvolveStep, Operation, QualityStep

STEP: Final = "evolve"

_CHANGES: Final[dict[Operation, str]] = {
    "constraints": "Ask for the same, and add one condition or requirement that the answer has to meet.",
    "deepen": "Ask for more depth: take one question that the instruction raises, and ask for it to be gone into further and wider.",
    "concretise": "Put something specific in the place of something general that the instruction speaks of.",
    "reasoning": "Change the instruction so that several steps of reasoning are needed where one would do, and ask for them to be shown.",
    "complicate": "Add data to work on: a table, a piece of code, a formula or a short document that the instruction then refers to.",
    "broaden": "Write another instruction of the same field and of like length and difficulty, about something rarer.",
}
"""What is asked for by operation: all but `broaden` deepen (Evol-Instruct's in-depth and in-breadth)."""

_EVOLVE = (
    "You change instructions that people give to an assistant. The result must make sense to somebody who never saw the one you were given, "
    "must be one that can be carried out in text, and should be longer by ten to twenty words at most{data}. Do not answer it, and use no words "
    "that speak of the change itself. Give it between <instruction> and </instruction>, and nothing else."
)
_DATA = ", the data you add aside"
_KEEPS_INPUT = " The input below stays with the instruction as it is; do not repeat it."
# Words of our own directions, and of the ones that models have seen most of.
_SCAFFOLD = re.compile(
    r"</?(?:instruction|input|answer)>|#\w[\w ]*(?:prompt|instruction)#|"
    r"\b(?:given|rewritten|created|evolved|original|changed|new)\s+(?:prompt|instruction)s?\b",
    re.IGNORECASE,
)
_SORRY = re.compile(r"\bsorry\b", re.IGNORECASE)
_LITTLE = "a an as at by for from i in is it no not on or so this was yes"
_STOP_WORDS = frozenset(QualityStep().stop_words) | frozenset(_LITTLE.split(" "))
_WORD = re.compile(r"\w+")


def build(options: EvolveStep, context: StepContext) -> "Evolve":
    """The step."""
    return Evolve(options, context)


class Evolve:
    """Evolves single exchanges; `accounts` tells what that took."""

    def __init__(self, options: EvolveStep, context: StepContext, backoff: Backoff | None = None) -> None:
        self._options = options
        self._asking = Asking(options.model, STEP, context, backoff)
        self.accounts = self._asking.accounts

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        outcome = list(records)
        places = [i for i, record in enumerate(records) if _is_single(record)]
        with self._asking.open() as asker:
            for number in range(self._options.rounds):
                chosen = [choose_operation(outcome[i], self._options.operations, number) for i in places]
                questions = [[ask_evolution(outcome[i], op)] for i, op in zip(places, chosen, strict=True)]
                evolved = ask_groups(asker, questions, _read_instruction)
                drafts = [self._evolve(outcome[i], op, e) for i, op, e in zip(places, chosen, evolved, strict=True)]
                asked = [[] if isinstance(d, Drop) else [Question(show_prompt(d, len(d.messages) - 1))] for d in drafts]
                answers = ask_groups(asker, asked, _read_answer)
                going_on = []
                for i, op, draft, answer in zip(places, chosen, drafts, answers, strict=True):
                    result = draft if isinstance(draft, Drop) else self._answer(outcome[i], draft, op, answer)
                    if isinstance(result, Drop):
                        outcome[i] = quarantine(outcome[i], STEP, result.rule, result.detail)
                    else:
                        outcome[i] = result
                        going_on.append(i)
                places = going_on
        return list(outcome)

    def _evolve(self, record: Record, operation: Operation, given: tuple[str, ...] | Unanswered) -> Record | Drop:
        """The record with its new instruction and its old answer."""
        if isinstance(given, Unanswered):
            return Drop("unanswered", f"The model wrote no usable instruction: {given.reason}")
        before, after = _get_instruction(record), given[0].strip()
        if (words := find_scaffold(after, before)) is not None:
            return Drop("scaffold", f"The evolved instruction repeats the directions: “{words}”.")
        alike = measure_likeness(before, after)
        if alike > self._options.max_rouge:
            detail = f"The evolved instruction says the same: ROUGE-L F {alike:.3g}, where at most {self._options.max_rouge:g} is wanted."
            return Drop("maxRouge", detail, alike, self._options.max_rouge)
        turns = tuple(Message("user", after) if m.role == "user" else m for m in record.messages)
        return replace(record, messages=turns, input="" if operation == "broaden" else record.input)

    def _answer(
        self, before: Record, draft: Record, operation: Operation, given: tuple[str, ...] | Unanswered
    ) -> Record | Drop:
        if isinstance(given, Unanswered):
            return Drop("unanswered", f"The model gave the evolved instruction no usable answer: {given.reason}")
        answer, limit = given[0], self._options.refusal_words
        words = _WORD.findall(answer.casefold())
        if len(answer.split()) < limit and _SORRY.search(answer):
            count = len(answer.split())
            return Drop(
                "refusalWords", f"The answer to the evolved instruction is a refusal of {count} words.", count, limit
            )
        if _STOP_WORDS.issuperset(words):
            return Drop(
                "emptyAnswer", "The answer to the evolved instruction is nothing but stop words and punctuation."
            )
        if (found := find_scaffold(answer, draft.prompt)) is not None:
            return Drop("scaffold", f"The answer repeats the directions: “{found}”.")
        was = {"instruction": _get_instruction(before), "input": before.input, "answer": before.answer}
        was = {name: text for name, text in was.items() if text}
        return note_change(draft.with_answer(answer), f"{STEP}.{operation}", self._options.model.model, was)


def measure_likeness(before: str, after: str) -> float:
    """ROUGE-L F of two texts, rounded; 1 for equal ones also where they have no words that it knows."""
    if fold_text(before) == fold_text(after):
        return 1.0
    return round(float(measure_rouge([before, after], np.array([[0, 1]]))[0]), 6)


def choose_operation(record: Record, operations: Sequence[Operation], number: int) -> Operation:
    """The operation of round `number` (from 0), by the record's content: the same wherever the record stands."""
    key = hash_content(record.messages, record.input) + bytes([number])
    return operations[int.from_bytes(blake2b(key, digest_size=8, person=b"evolve").digest(), "big") % len(operations)]


def ask_evolution(record: Record, operation: Operation) -> Question:
    """The question for a record's instruction evolved by an operation."""
    keeps_input = record.input and operation != "broaden"
    task = _EVOLVE.format(data=_DATA if operation == "complicate" else "") + (_KEEPS_INPUT if keeps_input else "")
    shown = tag("instruction", _get_instruction(record))
    if record.input:
        shown += "\n\n" + tag("input", record.input)
    return build_question(task, f"{_CHANGES[operation]}\n\n{shown}")


def find_scaffold(text: str, allowed: str) -> str | None:
    """Words of the directions that a text repeats, and that what it was made from does not hold itself."""
    own = allowed.casefold()
    return next((m[0] for m in _SCAFFOLD.finditer(text) if m[0].casefold() not in own), None)


def _is_single(record: Record) -> bool:
    roles = [m.role for m in record.messages if m.role != "system"]
    return roles == ["user", "assistant"] and bool(record.prompt.strip())


def _get_instruction(record: Record) -> str:
    return next(m.content for m in record.messages if m.role == "user")


_read_instruction = read_tagged("instruction")


def _read_answer(text: str) -> str:
    """A plain answer. Raises ValueError where there is none."""
    answer = strip_thoughts(text).strip()
    if not answer.strip(string.whitespace):
        raise ValueError("the answer is empty")
    return answer

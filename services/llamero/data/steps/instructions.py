"""Self-Instruct's rules for instructions and their instances (arXiv:2212.10560, code).

An instruction is the first user turn, an instance its input and answer. That the same input has different answers is seen across records
alone: see the set step `duplicates`.
"""

import string
from collections.abc import Sequence
from itertools import pairwise

from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.word_list import WordList
from llamero.spec.steps import InstructionsStep

_PROGRAM = "write a program"
_PUNCTUATION = frozenset(string.punctuation)


class _Instructions:
    def __init__(self, options: InstructionsStep) -> None:
        self._options = options
        self._blocked = WordList(options.blocked_words)

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._judge(record) for record in records]

    def _judge(self, record: Record) -> Record | Drop:
        instruction = next((m.content for m in record.messages if m.role == "user"), "").strip()
        drop = self._judge_instruction(instruction)
        if drop is None and self._options.check_instances:
            drop = _judge_instances(record)
        return record if drop is None else drop

    def _judge_instruction(self, instruction: str) -> Drop | None:
        options = self._options
        words = len(instruction.split())
        if words < options.min_words:
            detail = f"The instruction has {words} words, where at least {options.min_words} are wanted."
            return Drop("minWords", detail, words, options.min_words)
        if words > options.max_words:
            detail = f"The instruction has {words} words, where at most {options.max_words} are wanted."
            return Drop("maxWords", detail, words, options.max_words)
        if self._blocked and (found := self._blocked.find(instruction)) is not None:
            return Drop("blockedWords", f"The instruction holds “{found}”, which a language model can't serve.")
        if not options.allow_programs and " ".join(instruction[:40].lower().split()).startswith(_PROGRAM):
            return Drop("allowPrograms", "The instruction begins with “Write a program”.")
        first = instruction[0]
        if options.require_ascii_start and (first in _PUNCTUATION or not first.isascii()):
            return Drop("requireAsciiStart", f"The instruction begins with “{first}”, no ASCII letter or digit.")
        return None


def _judge_instances(record: Record) -> Drop | None:
    """The rules for an input and its answer; in a conversation each user turn is the input of the answer after it."""
    for before, after in pairwise(record.messages):
        if after.role != "assistant":
            continue
        answer = after.content.strip()
        if not answer:
            return Drop("checkInstances", "The answer is empty.")
        if answer.endswith(":"):
            return Drop("checkInstances", "The answer ends with a colon, as one that was cut off.")
        if before.role == "user" and answer == before.content.strip():
            return Drop("checkInstances", "The answer repeats the prompt.")
    given = record.input.strip()
    if given and given == record.answer.strip():
        return Drop("checkInstances", "The answer repeats the input.")
    if given.endswith(":"):
        return Drop("checkInstances", "The input ends with a colon, as one that was cut off.")
    return None


def build(options: InstructionsStep, context: StepContext) -> _Instructions:
    """The step."""
    return _Instructions(options)

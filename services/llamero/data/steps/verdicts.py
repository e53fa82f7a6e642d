"""Which texts of records are judged by rules on texts, what one rule says of them, and what becomes of the records.

Shared by the steps `quality` and `repetition`, whose rules stand in their own modules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llamero.data.steps.record import Drop, Record
from llamero.data.words import Flags, Texts, iterate_batches, join_texts, strip_code


@dataclass(frozen=True)
class Rule:
    """What one rule found in each text, and which texts fail it."""

    name: str
    values: NDArray[np.float64]
    threshold: float
    fails: Flags
    detail: str

    def build_drop(self, text: int, where: str = "") -> Drop:
        """Why this text is dropped; `where` says which part of its record it is."""
        value = float(self.values[text])
        return Drop(self.name, where + self.detail.format(value=value, threshold=self.threshold), value, self.threshold)


def find_first_failures(rules: Sequence[Rule]) -> NDArray[np.int64]:
    """The number of the first rule that each text fails, -1 where it passes all."""
    fails = np.stack([rule.fails for rule in rules])
    return np.where(fails.any(axis=0), fails.argmax(axis=0), -1)


@dataclass(frozen=True)
class Choice:
    """Which texts of a record are judged, and how much of them.

    `whole`: the record as one text; else each answer, and with `prompts` each prompt. `least_answer`, `least_prompt`: shorter texts (in
    characters) can fail no rule. Without code where `exempt_code`, without maths where `exempt_maths`.
    """

    whole: bool
    prompts: bool
    least_answer: int
    least_prompt: int
    exempt_code: bool
    exempt_maths: bool


@dataclass
class Parts:
    """The texts to judge, each with the number of its record and whether it is a prompt."""

    records: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    are_prompts: list[bool] = field(default_factory=list)

    def add(self, record: int, text: str, is_prompt: bool) -> None:
        self.records.append(record)
        self.texts.append(text)
        self.are_prompts.append(is_prompt)


def count_least_characters(words: int, cut: str) -> int:
    """Fewer characters than this can't make so many words."""
    return 2 * words - 1 if cut == "blanks" else words


def list_parts(records: Sequence[Record], choice: Choice) -> Parts:
    """The texts of the records that might fail a rule, in the records' order."""
    parts = Parts()
    for number, record in enumerate(records):
        if choice.whole:
            parts.add(number, record.text, False)
            continue
        extra = record.input
        for message in record.messages:
            role, text = message.role, message.content
            if role == "assistant":
                if len(text) >= choice.least_answer:
                    parts.add(number, text, False)
            elif role == "user" and choice.prompts:
                if extra:
                    text, extra = f"{text}\n\n{extra}", ""
                if len(text) >= choice.least_prompt:
                    parts.add(number, text, True)
    if choice.exempt_code:
        parts.texts = [strip_code(text, choice.exempt_maths) for text in parts.texts]
    return parts


Judge = Callable[[Texts, Flags], list[Rule]]
"""What the rules say of texts, of which some are marked as prompts."""


def judge_records(records: Sequence[Record], choice: Choice, judge: Judge) -> list[Record | Drop]:
    """Each record itself, or the first rule that the first of its failing texts fails."""
    results: list[Record | Drop] = list(records)
    parts = list_parts(records, choice)
    for start, end in iterate_batches(parts.texts):
        are_prompts = np.array(parts.are_prompts[start:end], dtype=np.bool_)
        rules = judge(join_texts(parts.texts[start:end]), are_prompts)
        failures = find_first_failures(rules)
        for place in np.flatnonzero(failures >= 0).tolist():
            number = parts.records[start + place]
            if isinstance(results[number], Record):
                where = "" if choice.whole else "The prompt: " if are_prompts[place] else "The answer: "
                results[number] = rules[failures[place]].build_drop(place, where)
    return results

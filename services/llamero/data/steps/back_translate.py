"""Writes the instruction that a text answers, has the pair scored from 1 to 5, and keeps the best (arXiv:2308.06259).

It is for records without an instruction (a `records` source of which only `output` is mapped); others pass as they are. A text for which
no instruction or no score could be had is dropped: it can't be trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llamero.data.asking.client import Backoff
from llamero.data.asking.questions import Unanswered
from llamero.data.readers.draft import UNLABELLED
from llamero.data.steps.asked import Asking, ask_groups, build_question
from llamero.data.steps.lineage import note_change
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.tagged import read_tagged, strip_thoughts, tag
from llamero.spec.records import Message
from llamero.spec.steps import BackTranslateStep

STEP: Final = "backTranslate"
_WRITE = (
    "You are given a text. Somebody asked an assistant for something, and this text is the assistant's whole answer. Write what they asked: one "
    "clear request that stands by itself, in the language of the text, that does not quote it and does not mention that it exists. Give the "
    "request between <instruction> and </instruction>, and nothing else."
)
_SCORE = (
    "You judge pairs of a request and an answer for teaching an assistant. Give one of these scores:\n"
    "1: the answer is off the point, broken, incomplete or advertising.\n"
    "2: it speaks to the request but misses most of it, or is full of what was not asked for.\n"
    "3: it helps, but reads as a piece of a page, a blog or a forum rather than as an assistant's answer.\n"
    "4: it answers the whole request as an assistant would, clearly and to the point, with little to improve.\n"
    "5: an expert wrote it for exactly this request; nothing is missing, wrong or superfluous.\n"
    "Give your reason in a sentence or two, and then, as the last line, `Score: ` and the number alone."
)
_LAST_LINE = re.compile(r"Score:\s*([1-5])\.?")
_ANY_SCORE = re.compile(r"^\W*Score:", re.MULTILINE)


def build(options: BackTranslateStep, context: StepContext) -> "BackTranslate":
    """The step."""
    return BackTranslate(options, context)


class BackTranslate:
    """Labels texts; `accounts` tells what that took."""

    def __init__(self, options: BackTranslateStep, context: StepContext, backoff: Backoff | None = None) -> None:
        self._options = options
        self._asking = Asking(options.model, STEP, context, backoff)
        self.accounts = self._asking.accounts

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        places = [i for i, record in enumerate(records) if is_unlabelled(record)]
        texts = [records[i].answer for i in places]
        with self._asking.open() as asker:
            written = ask_groups(asker, [[build_question(_WRITE, tag("text", t))] for t in texts], read_instruction)
            pairs = [
                [] if isinstance(w, Unanswered) else [build_question(_SCORE, _show_pair(w[0], text))]
                for w, text in zip(written, texts, strict=True)
            ]
            scored = ask_groups(asker, pairs, read_score)
        outcome: list[Record | Drop] = list(records)
        for place, instruction, score in zip(places, written, scored, strict=True):
            outcome[place] = self._decide(records[place], instruction, score)
        return outcome

    def _decide(
        self, record: Record, written: tuple[str, ...] | Unanswered, scored: tuple[str, ...] | Unanswered
    ) -> Record | Drop:
        if isinstance(written, Unanswered):
            return Drop("unanswered", f"The model wrote no usable instruction: {written.reason}")
        if isinstance(scored, Unanswered):
            return Drop("unanswered", f"The model gave the pair no usable score: {scored.reason}")
        score, wanted = float(scored[0]), self._options.min_score
        if score < wanted:
            detail = f"The model scored the pair {score:g} of 5, where at least {wanted:g} is wanted; its instruction: “{written[0][:300]}”."
            return Drop("minScore", detail, score, wanted)
        return _label(record, written[0], self._options.model.model, score)


def is_unlabelled(record: Record) -> bool:
    """Whether it is a text without an instruction."""
    return not record.prompt.strip() and len([m for m in record.messages if m.role == "assistant"]) == 1


def _label(record: Record, instruction: str, by: str, score: float) -> Record:
    turns = tuple(Message("user", instruction) if m.role == "user" else m for m in record.messages)
    meta = {name: value for name, value in record.meta.items() if name != UNLABELLED}
    return note_change(replace(record, messages=turns, meta=meta), STEP, by, {"instruction": ""}, score=score)


def read_instruction(answer: str) -> str:
    """The instruction of a model's answer. Raises ValueError for any other answer."""
    return _read_instruction(answer).strip()


def read_score(answer: str) -> str:
    """The score of a model's answer, `1` to `5`: its last line, and no other. Raises ValueError."""
    text = strip_thoughts(answer)
    found = _LAST_LINE.fullmatch(text.rsplit("\n", 1)[-1].strip())
    if found is None or len(_ANY_SCORE.findall(text)) != 1:
        raise ValueError("the last line is not `Score: ` and a number from 1 to 5, or there is more than one score")
    return found[1]


_read_instruction = read_tagged("instruction")


def _show_pair(instruction: str, text: str) -> str:
    return f"{tag('request', instruction)}\n\n{tag('answer', text)}"

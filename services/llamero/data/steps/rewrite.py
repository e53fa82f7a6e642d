"""Rewrites answers in one given style, or as lessons with exercises (arXiv:2307.01003, 2306.11644), and refuses what loses something.

The original stays in `meta.original`; a rewrite that loses code, numbers or names leaves the record as it was, with the reason in
`meta.quarantined` (see `preserved.py` for how each is checked, `lineage.py` for the shape).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llamero.data.asking.client import Backoff
from llamero.data.asking.questions import Question, Unanswered
from llamero.data.steps.asked import Asking, ask_groups, build_question
from llamero.data.steps.lineage import note_change, quarantine
from llamero.data.steps.preserved import Loss, find_losses
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.tagged import read_tagged, strip_thoughts, tag
from llamero.spec.records import Message
from llamero.spec.steps import RewriteStep

STEP: Final = "rewrite"
_SHOWN_LOSSES = 5

_KEEP = (
    "Keep what it says: every fact, every number, every name, and every piece of code character by character. Add no facts of your own. "
    "Stay in the language of the text."
)
_STYLE = (
    "You are an editor. You are given a question and an answer to it, and you say the answer anew in the style that is asked for. "
    f"{_KEEP} Give the edited answer between <answer> and </answer>, and nothing else."
)
_TEXTBOOK = (
    "You write textbooks. You are given a passage, and you turn it into a short lesson: say what it is about, explain its ideas step by step "
    f"for somebody who meets them for the first time, and end with one to three exercises whose solutions follow from the lesson. {_KEEP} "
    "Give the lesson between <lesson> and </lesson>, then each exercise between <exercise> and </exercise>, followed at once by its solution "
    "between <solution> and </solution>, and nothing else."
)

_LESSON = re.compile(r"<lesson>(.*?)</lesson>(.*)", re.DOTALL)
_EXERCISE = re.compile(r"\s*<exercise>(.*?)</exercise>\s*<solution>(.*?)</solution>", re.DOTALL)
_TAG = re.compile(r"</?(?:lesson|exercise|solution)>")


def build(options: RewriteStep, context: StepContext) -> "Rewrite":
    """The step."""
    return Rewrite(options, context)


@dataclass(frozen=True)
class _Mode:
    """How a mode asks for an answer anew (question, answer, style), and reads what comes."""

    ask: Callable[[str, str, str], Question]
    parse: Callable[[str], str]


class Rewrite:
    """Rewrites each answer of a record; `accounts` tells what that took."""

    def __init__(self, options: RewriteStep, context: StepContext, backoff: Backoff | None = None) -> None:
        self._options = options
        self._asking = Asking(options.model, f"{STEP} {options.mode}", context, backoff)
        self.accounts = self._asking.accounts
        self._mode = _MODES[options.mode]

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        groups = [self._ask(record) for record in records]
        with self._asking.open() as asker:
            answers = ask_groups(asker, groups, self._mode.parse)
        return [self._take(record, given) for record, given in zip(records, answers, strict=True)]

    def _ask(self, record: Record) -> list[Question]:
        """A question for each answer of the record, with the turn before it."""
        questions, prompt = [], ""
        for message in record.messages:
            if message.role == "assistant":
                questions.append(self._mode.ask(prompt, message.content, self._options.style))
            elif message.role != "system":
                has_input = record.input and not prompt
                prompt = f"{message.content}\n\n{record.input}" if has_input else message.content
        return questions

    def _take(self, record: Record, given: tuple[str, ...] | Unanswered) -> Record:
        if isinstance(given, Unanswered):
            return quarantine(record, STEP, "unanswered", f"The model gave no usable rewrite: {given.reason}")
        originals = [m.content for m in record.messages if m.role == "assistant"]
        for original, rewrite in zip(originals, given, strict=True):
            losses = find_losses(original, rewrite, self._options.keep)
            if losses:
                return quarantine(record, STEP, "keep", f"The rewrite lost {_show_losses(losses)}.")
        if list(given) == originals:
            return record
        new = iter(given)
        turns = tuple(Message("assistant", next(new)) if m.role == "assistant" else m for m in record.messages)
        was = {"answer": originals[0]} if len(originals) == 1 else {"answers": originals}
        changed = replace(record, messages=turns)
        return note_change(changed, f"{STEP}.{self._options.mode}", self._options.model.model, was)


def _show_losses(losses: Sequence[Loss]) -> str:
    def show(loss: Loss) -> str:
        shown = ", ".join(f"“{' '.join(item.split())[:60]}”" for item in loss.items[:_SHOWN_LOSSES])
        more = len(loss.items) - _SHOWN_LOSSES
        return f"{loss.kind}: {shown}{f' and {more} more' if more > 0 else ''}"

    return "; ".join(map(show, losses))


def _ask_style(question: str, answer: str, style: str) -> Question:
    return build_question(_STYLE, f"Style: {style}\n\n{tag('question', question)}\n\n{tag('text', answer)}")


def _ask_lesson(question: str, answer: str, style: str) -> Question:
    about = f"The passage answers this:\n{tag('question', question)}\n\n" if question else ""
    return build_question(_TEXTBOOK, f"Style: {style}\n\n{about}{tag('text', answer)}")


def read_lesson(answer: str) -> str:
    """A lesson with its exercises and their solutions as Markdown. Raises ValueError for an answer that is anything else."""
    whole = _LESSON.fullmatch(strip_thoughts(answer))
    if whole is None or not whole[1].strip():
        raise ValueError("the answer does not begin with a lesson between <lesson> and </lesson>")
    pairs, end = [], 0
    while found := _EXERCISE.match(whole[2], end):
        pairs.append((found[1].strip(), found[2].strip()))
        end = found.end()
    if not pairs or whole[2][end:].strip():
        raise ValueError("the lesson is not followed by exercises, each with its solution, and nothing else")
    if not all(exercise and solution for exercise, solution in pairs) or _TAG.search("".join(map("".join, pairs))):
        raise ValueError("an exercise or its solution is empty or not closed")
    exercises = "\n".join(f"{number}. {exercise}" for number, (exercise, _) in enumerate(pairs, 1))
    solutions = "\n".join(f"{number}. {solution}" for number, (_, solution) in enumerate(pairs, 1))
    return f"{whole[1].strip()}\n\n## Exercises\n\n{exercises}\n\n## Solutions\n\n{solutions}"


_MODES: Final = {"style": _Mode(_ask_style, read_tagged("answer")), "textbook": _Mode(_ask_lesson, read_lesson)}

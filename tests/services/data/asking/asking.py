"""Short ways to say what is asked and read what came back."""

from collections.abc import Iterable
from typing import Any

from llamero.data.asking.questions import Answer, Question
from llamero.spec.records import Message


def say(*texts: object) -> list[Question]:
    """A question of one turn for each text."""
    return [Question((Message("user", str(text)),)) for text in texts]


def read_texts(outcomes: Iterable[Any]) -> list[str]:
    """The texts of outcomes that are all answers."""
    texts = []
    for outcome in outcomes:
        assert isinstance(outcome, Answer), outcome
        texts.append(outcome.text)
    return texts

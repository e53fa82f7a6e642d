"""What the tests of record steps share: a record from a few words, and a step put to it."""

from pathlib import Path
from typing import Any

import pytest

from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.registry import build_record_step
from llamero.spec.profiles import PlannedStep
from llamero.spec.records import Message
from llamero.spec.steps import DataStep

ROLES = ("user", "assistant")


def make_record(prompt: str = "Name a fruit that is red.", answer: str = "An apple is one.", **more: Any) -> Record:
    """An exchange."""
    return make_talk(prompt, answer, **more)


def make_talk(*turns: str, row: int = 0, **more: Any) -> Record:
    """A conversation: the user's turn first."""
    messages = tuple(Message(ROLES[i % 2], turn) for i, turn in enumerate(turns))
    return Record(row, "source", "file.jsonl", row + 1, messages, **more)


def apply_step(
    kind: str, records: list[Record], files: dict[str, Path] | None = None, seed: int = 0, **options: Any
) -> list[Record | Drop]:
    """A step's results by its options in camelCase; `files` are what its URIs lead to."""

    def fetch(uri: str) -> Path:
        return (files or {})[uri] if files and uri in files else pytest.fail(f"fetched {uri}")

    step = DataStep.model_validate({kind: options})
    planned = PlannedStep(1, kind, step.options, (), "spec.data.steps[0]")
    return build_record_step(planned, StepContext(seed, None, "", 1, fetch)).apply(records)


def find_rule(kind: str, record: Record, **options: Any) -> str | None:
    """The rule by which the record is dropped; None where it is kept."""
    result = apply_step(kind, [record], **options)[0]
    return result.rule if isinstance(result, Drop) else None

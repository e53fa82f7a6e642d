"""The kinds of dirt, what becomes of each, and the list of what was planted where."""

from dataclasses import dataclass, field
from typing import Any

# What becomes of each kind of dirt: the first word is the verdict.
OUTCOMES = {
    "stackexchange-duplicate-exact": "rejected: duplicate",
    "stackexchange-duplicate-whitespace": "rejected: duplicate",
    "stackexchange-empty-answer": "rejected: empty",
    "stackexchange-unanswered": "rejected: unanswered",
    "stackexchange-question-without-id": "rejected: broken",
    "stackexchange-question-without-title": "rejected: broken",
    "stackexchange-answer-without-body": "rejected: broken",
    "stackexchange-orphan-answer": "rejected: broken",
    "stackexchange-too-long": "rejected: too long",
    "stackexchange-tag-wiki": "ignored: neither question nor answer",
    "stackexchange-accepted-not-best": "kept: with the answer of most votes",
    "alpaca-duplicate-exact": "rejected: duplicate",
    "alpaca-duplicate-whitespace": "rejected: duplicate",
    "alpaca-duplicate-case": "rejected: duplicate",
    "alpaca-duplicate-markup": "rejected: duplicate",
    "alpaca-duplicate-of-stackexchange": "rejected: duplicate",
    "alpaca-empty-output": "rejected: empty",
    "alpaca-blank-output": "rejected: empty",
    "alpaca-markup-only-output": "rejected: empty",
    "alpaca-missing-output": "rejected: broken",
    "alpaca-missing-instruction": "rejected: broken",
    "alpaca-row-not-object": "rejected: broken",
    "alpaca-output-not-text": "rejected: broken",
    "alpaca-html-output": "kept: as Markdown",
    "alpaca-near-duplicate": "kept: for near-duplicate removal",
    "sharegpt-duplicate-exact": "rejected: duplicate",
    "sharegpt-duplicate-whitespace": "rejected: duplicate",
    "sharegpt-duplicate-markup": "rejected: duplicate",
    "sharegpt-duplicate-of-alpaca": "rejected: duplicate",
    "sharegpt-empty-answer": "rejected: empty",
    "sharegpt-markup-only-answer": "rejected: empty",
    "sharegpt-short-turn": "rejected: a turn of fewer than 16 characters",
    "sharegpt-quota-refusal": "rejected: refusal by quota",
    "sharegpt-missing-conversations": "rejected: broken",
    "sharegpt-empty-conversations": "rejected: broken",
    "sharegpt-only-gpt": "rejected: broken",
    "sharegpt-not-alternating": "rejected: broken",
    "sharegpt-unknown-role": "rejected: broken",
    "sharegpt-value-not-text": "rejected: broken",
    "sharegpt-row-not-object": "rejected: broken",
    "sharegpt-leading-gpt": "kept: without its first turn",
    "sharegpt-html": "kept: as Markdown",
    "sharegpt-copy-code": "kept: without the button's words",
    "sharegpt-page-counter": "kept: without the counter",
    "sharegpt-long-conversation": "kept: cut into chunks of whole turns",
    "sharegpt-near-duplicate": "kept: for near-duplicate removal",
}


@dataclass
class Dirt:
    """Collects which rows are dirt: kind → file and ids."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, kind: str, file: str, row_id: int | str) -> None:
        entry = self.kinds.setdefault(kind, {"file": file, "count": 0, "ids": [], "outcome": OUTCOMES[kind]})
        entry["ids"].append(row_id)
        entry["count"] += 1

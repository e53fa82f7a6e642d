"""Rows of a JSON file, and copies that come after what they repeat; it knows both JSON formats only as far as an answer stands in them."""

import random
import re
from dataclasses import dataclass
from typing import Any

# One or two words changed; the first that matches is used.
NEAR_DUPLICATES = (
    ("What does", "What exactly does"),
    ("What is", "What precisely is"),
    ("How do I", "How can I"),
    ("Which", "Tell me which"),
    ("Why", "Why exactly"),
    ("How", "Please say how"),
)


@dataclass(frozen=True)
class Row:
    """One row of a JSON file, with the kinds of dirt that it stands for."""

    value: Any
    kinds: tuple[str, ...] = ()


def mix(rows: list[Row], later: list[Row], rng: random.Random) -> list[Row]:
    """Rows in random order; each of `later` comes after the half that may hold its original, so that the copy is the one rejected."""
    rows = rng.sample(rows, len(rows))
    for row in later:
        rows.insert(rng.randint(last_original(rows, row) + 1, len(rows)), row)
    return rows


def last_original(rows: list[Row], copy: Row) -> int:
    """Index of the last row with the answer that `copy` repeats, −1 where it is in another file."""
    wanted = gist(copy.value)
    return max((index for index, row in enumerate(rows) if gist(row.value) == wanted), default=-1)


def gist(value: Any) -> str:
    """An answer without spaces, case and tags, to find a copy's original."""
    if not isinstance(value, dict):
        return ""
    turns = value.get("conversations") or [{}]
    answer = value.get("output") or turns[-1].get("value")
    return re.sub(r"<[^>]*>|\s", "", str(answer)).lower()


def reword(question: str) -> str:
    for start, other in NEAR_DUPLICATES:
        if question.startswith(start):
            return other + question.removeprefix(start)
    return f"Tell me: {question}"

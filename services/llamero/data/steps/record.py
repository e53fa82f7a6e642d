"""A record on its way through the steps, and why one is dropped.

Records files are JSONL of `Record.to_dict` (fields that hold nothing may be left out). Plain frozen dataclasses: there are millions of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llamero.spec.records import Message


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `row` is its place in its raw shard, `line` the 1-based place in the source's file.

    `messages` end with an assistant's turn; `input` belongs to the first user turn of a single exchange. `meta` goes along into the
    outcome (a rewrite keeps the original there); `scores` are what steps measured, by the names of `spec.steps.SCORES`. `id` is the hash
    of the content as it was when equal records were looked for, in hex; empty before that. A system prompt of the manifest is not in it.
    """

    row: int
    source: str
    file: str
    line: int
    messages: tuple[Message, ...]
    input: str = ""
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    id: str = ""

    @property
    def prompt(self) -> str:
        """The first user turn, its input after a line break."""
        first = next((m.content for m in self.messages if m.role == "user"), "")
        return f"{first}\n{self.input}" if self.input else first

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    @property
    def text(self) -> str:
        """The record as one text: prompt, input, answers, each a paragraph; system prompts left out."""
        turns = [m.content for m in self.messages if m.role != "system"]
        if self.input:
            turns.insert(1, self.input)
        return "\n\n".join(turns)

    def get_field(self, name: str) -> str:
        """`prompt`, `answer` or `record`."""
        return {"prompt": self.prompt, "answer": self.answer}.get(name) or (self.text if name == "record" else "")

    def with_answer(self, text: str) -> "Record":
        """The record with another last assistant turn."""
        last = max(i for i, m in enumerate(self.messages) if m.role == "assistant")
        turns = (*self.messages[:last], Message("assistant", text), *self.messages[last + 1 :])
        return replace(self, messages=turns)

    def with_scores(self, **scores: float) -> "Record":
        """The record with further scores."""
        return replace(self, scores={**self.scores, **scores})

    def with_meta(self, **meta: Any) -> "Record":
        """The record with more to tell of it."""
        return replace(self, meta={**self.meta, **meta})

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "row": self.row,
            "source": self.source,
            "file": self.file,
            "line": self.line,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
        }
        for name in ("input", "tags", "meta", "scores", "id"):
            if value := getattr(self, name):
                row[name] = value
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Record":
        get = row.get
        return cls(
            row["row"],
            row["source"],
            row["file"],
            row["line"],
            tuple([Message(m["role"], m["content"]) for m in row["messages"]]),  # a list is faster here
            get("input", ""),
            tuple(get("tags", ())),
            get("meta") or {},
            get("scores") or {},
            get("id", ""),
        )


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a step drops a record: the rule (a field of its options, camelCase), what was found, what was wanted, a sentence.

    `value` and `threshold` are None where the rule has no number. The step's name and number are added by the pipeline. `text` is
    shown in place of the record's own, where that must not be shown.
    """

    rule: str
    detail: str
    value: float | None = None
    threshold: float | None = None
    text: str | None = None


class RecordStep(Protocol):
    """A step that sees one record at a time."""

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        """What becomes of each, in their order: itself, changed, or dropped. Pure but for what a step that asks models caches.

        The result for a record must not depend on the others in the batch. Raises DataError with a sentence.
        """
        ...


@dataclass(frozen=True)
class StepContext:
    """What a record step may use of its surroundings.

    `base` is a local folder with tokenizer and weights, None where the preparation has no model. `answers` is the URI of the folder in
    which answers of language models are cached, shared by all workers and runs of the job; `workers` how many share rate limits.
    `fetch(uri)` gives a local path of a file or folder that the step's options name (word lists, evaluation sets, models); a set
    step's tasks call `files.fetch_named(uri)` for the same. What lies elsewhere was copied to the shared shards before.
    `allow_http` is `data.allowHttp`; `preparation` names what a model's `maxCost` and `maxTotalTokens` are for (empty: all that the step
    ever spent in `answers`).
    """

    seed: int
    base: Path | None
    answers: str
    workers: int
    fetch: "Fetch"
    allow_http: bool = False
    preparation: str = ""


class Fetch(Protocol):
    def __call__(self, uri: str) -> Path: ...


def find_score(record: Record, name: str) -> float | None:
    """A record's score by name, measured or computed from it; None where it has none."""
    if name in record.scores:
        return record.scores[name]
    if name == "promptWords":
        return float(len(record.prompt.split()))
    if name == "answerWords":
        return float(len(record.answer.split()))
    if name == "answerCharacters":
        return float(len(record.answer))
    return None

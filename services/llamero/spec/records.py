"""The records that go from data to training and evaluation: conversations, and the rows that were rejected.

A record file is JSONL, one `Conversation` (or `Rejection`) a line. Plain frozen dataclasses rather than pydantic: there are
millions of them.
"""

from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One record: turns that end with an assistant's, and where they came from.

    `source` is the source's name in the manifest, `line` the 1-based line, row or element in its file `file`
    (for a Stack Exchange dump: the question's Id). `id` is the content's hash in hex, the record's name in all later files.
    `chunk` is set on pieces of a record that was too long.
    """

    id: str
    source: str
    file: str
    line: int
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()
    chunk: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": self.id,
            "source": self.source,
            "file": self.file,
            "line": self.line,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
        }
        if self.tags:
            row["tags"] = list(self.tags)
        if self.chunk is not None:
            row["chunk"] = self.chunk
        if self.meta:
            row["meta"] = self.meta
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> "Conversation":
        return cls(
            id=row["id"],
            source=row["source"],
            file=row["file"],
            line=row["line"],
            messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            tags=tuple(row.get("tags", ())),
            chunk=row.get("chunk"),
            meta=row.get("meta", {}),
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was not kept: where it stood, why, and its text (shortened to `MAX_REJECTED_TEXT` characters)."""

    source: str
    file: str
    line: int
    reason: str
    detail: str = ""
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "file": self.file,
            "line": self.line,
            "reason": self.reason,
            "detail": self.detail,
            "text": self.text,
        }


MAX_REJECTED_TEXT = 2000


class RejectionReason:
    """Why a record was rejected: the words used in reports. `BROKEN` ones count against data.maxRejectedFraction."""

    MALFORMED = "malformed"  # not readable as a record of the declared format
    EMPTY_PROMPT = "empty-prompt"
    EMPTY_ANSWER = "empty-answer"
    BAD_TURNS = "bad-turns"  # roles that don't alternate, or no assistant turn
    UNANSWERED = "unanswered"  # a question that nobody answered
    DUPLICATE = "duplicate"
    TOO_LONG = "too-long"
    CAPPED = "capped"
    GENERATE = "generate"  # what a language model made and the growing of the pool refused

    BROKEN = frozenset({MALFORMED, BAD_TURNS})

"""How long records are: in a base model's tokens, which are then kept, or in words where there is no base.

An input is everything up to the answers, an output what is trained on; as the template renders them, before anything is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llamero.data.shared import SharedFiles
from llamero.spec.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llamero.model.templates import Encoded

Row = tuple[Sequence[Message], str, bytes]
"""The turns, a system prompt included, the input of a single exchange, and the record's id, which chooses its wording."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A record's lengths, and its tokens (uint32 [n]) with their mask (uint8 [n]) where they are what is counted."""

    input: int
    output: int
    ids: NDArray[np.uint32] | None = None
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A record that the chat template can't render: why."""

    detail: str


class Measure(Protocol):
    """Measures many records at once."""

    has_tokens: bool

    def measure(self, rows: Sequence[Row]) -> list[Measured | Unmeasured]: ...


class WordMeasure:
    """Lengths in words, split at blanks."""

    has_tokens = False

    def measure(self, rows: Sequence[Row]) -> list[Measured | Unmeasured]:
        return [self._measure(messages, given) for messages, given, _ in rows]

    def _measure(self, messages: Sequence[Message], given: str) -> Measured:
        output = sum(len(m.content.split()) for m in messages if m.role == "assistant")
        whole = sum(len(m.content.split()) for m in messages) + len(given.split())
        return Measured(whole - output, output)


class TokenMeasure:
    """Lengths in tokens of a base model's chat template."""

    has_tokens = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", has_variants: bool) -> None:
        from llamero.model import templates

        self._tokenizer, self._templates, self._has_variants = tokenizer, templates, has_variants

    def measure(self, rows: Sequence[Row]) -> list[Measured | Unmeasured]:
        encoded = self._templates.encode_conversations(
            self._tokenizer,
            [(messages, given or None) for messages, given, _ in rows],
            errors="return",
            variants=self._choose([identity for *_, identity in rows]),
        )
        return [self._describe(row) for row in encoded]

    def _describe(self, encoded: "Encoded | Exception") -> Measured | Unmeasured:
        if isinstance(encoded, Exception):
            return Unmeasured(str(encoded))
        output = int(encoded.mask.sum())
        return Measured(len(encoded.ids) - output, output, encoded.ids, encoded.mask)

    def encode(self, pieces: Sequence[Sequence[Message]], identity: bytes) -> "list[Encoded]":
        """Tokens of parts of a record. Raises TemplateError."""
        rows = [(piece, None) for piece in pieces]
        return self._templates.encode_conversations(
            self._tokenizer, rows, variants=self._choose([identity] * len(rows))
        )

    def _choose(self, identities: Sequence[bytes]) -> list[int] | None:
        if not self._has_variants:
            return None
        from llamero.model.wordings import choose_variant

        return [choose_variant(identity) for identity in identities]


def open_measure(task: dict[str, Any], files: SharedFiles) -> Measure:
    """What a task's records are measured by: `tokenizer` is the base's folder, None for words."""
    if task["tokenizer"] is None:
        return WordMeasure()
    base = files.fetch_tokenizer(task["tokenizer"])
    return _open_tokens(str(base), task["template"], tuple(task["newTokens"]), task["templateVariants"])


@lru_cache(maxsize=4)
def _open_tokens(folder: str, template: str, new_tokens: tuple[str, ...], has_variants: bool) -> TokenMeasure:
    # Here, since it takes seconds to import what knows tokenizers: a worker reads sources meanwhile.
    from llamero.model.bases import load_tokenizer

    return TokenMeasure(load_tokenizer(Path(folder), template, new_tokens), has_variants)

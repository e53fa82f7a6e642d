"""Measures records under the base model: the answer's perplexity given the prompt, and IFD (arXiv:2308.12032), how little the prompt helps.

IFD is the mean loss of the answer's tokens given the prompt over that of the same tokens alone: near 0 the prompt gives the answer away,
at 1 and above it does not help, which is a sign of a prompt and an answer that don't belong together. Which are kept, a `threshold`, `rank` or
`mining` step says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.errors import DataError
from llamero.data.steps.record import Drop, Record, RecordStep, StepContext
from llamero.spec.steps import ScoreStep

if TYPE_CHECKING:
    from llamero.model.templates import Encoded

_BIN_TOKENS = 4096
_DIGITS = 4
"""Mean losses are rounded: what else lies in a batch changes their last bits, and must not change what is chosen by them."""
_TEMPLATE = "alpaca"
"""For a base without a chat template of its own; the one that the paper's figures were taken with."""

Example = tuple[NDArray[np.uint32], NDArray[np.uint8]]


def build(options: ScoreStep, context: StepContext) -> RecordStep:
    """Raises DataError where there is no base model, or no torch."""
    if context.base is None:
        raise DataError(
            "The step `score` measures records under the base model, and this preparation has none: name one in spec.baseModel, "
            "or take the step out of data.steps."
        )
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise DataError(
            "The step `score` needs torch, which is not installed where the data is prepared: use an image of llamero with the `training` "
            "extra for the data pods, or take the step out of data.steps."
        ) from error
    return _Score(tuple(options.indicators), options.max_tokens, context.base)


@dataclass(frozen=True)
class _Score:
    indicators: tuple[str, ...]
    max_tokens: int
    base: Path

    @cached_property
    def _measurer(self) -> "_Measurer":
        return _Measurer(self.base)

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        """The records with their scores; one whose prompt fills `maxTokens`, or that the base's template can't show, gets none."""
        if not records:
            return []
        encoded = self._measurer.encode(records)
        given: list[Example | None] = [_cut(e, self.max_tokens) for e in encoded]
        losses = self._measurer.measure(given)
        alone: list[float | None] = [None] * len(records)
        if "ifd" in self.indicators:
            alone = self._measurer.measure([e and _strip_prompt(e, self._measurer.opening) for e in given])
        return [
            record.with_scores(**_make_scores(self.indicators, loss, other))
            for record, loss, other in zip(records, losses, alone, strict=True)
        ]


def _make_scores(indicators: Sequence[str], loss: float | None, alone: float | None) -> dict[str, float]:
    scores = {}
    if "perplexity" in indicators and loss is not None:
        scores["perplexity"] = round(math.exp(min(loss, 100.0)), _DIGITS)
    if "ifd" in indicators and loss is not None and alone:
        scores["ifd"] = round(loss / alone, _DIGITS)
    return scores


def _cut(encoded: "Encoded | None", most: int) -> Example | None:
    """The first tokens of a record, None where no answer is among them."""
    if encoded is None:
        return None
    ids, mask = encoded.ids[:most], encoded.mask[:most].copy()
    mask[0] = 0  # nothing foretells a first token
    return (ids, mask) if mask.any() else None


def _strip_prompt(example: Example, opening: int) -> Example:
    """The answers' tokens alone, each run of them after the token that opens a text, in one row: prompts are cut out.

    Of several answers each later one sees those before it, as in the conversation.
    """
    ids, mask = example
    starts = np.flatnonzero((mask == 1) & (np.concatenate([[0], mask[:-1]]) == 0))
    stripped_ids, stripped_mask = ids.copy(), mask.copy()
    stripped_ids[starts - 1], stripped_mask[starts - 1] = opening, 2
    kept = stripped_mask > 0
    return stripped_ids[kept], (stripped_mask[kept] == 1).astype(np.uint8)


class _Measurer:
    """A base model and its tokenizer, loaded when the first records come."""

    def __init__(self, base: Path) -> None:
        import torch

        from llamero.model import attention, loading
        from llamero.model.errors import ModelError, TemplateError

        try:
            tokenizer = loading.read_tokenizer(base)
            self._tokenizer = loading.load_tokenizer(base, "base" if tokenizer.chat_template else _TEMPLATE)
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
            self._model: Any = loading.load_base(
                base,
                quantization=None,
                device=self._device,
                attention=attention.attention_for(self._device),
                training=False,
                dtype=torch.float32 if self._device == "cpu" else None,
            )
            attention.run_self_test(self._model, self._device)
        except (ModelError, TemplateError) as error:
            raise DataError(f"The step `score` can't use the base model: {error}") from error
        self._model.eval()
        if self._device == "cpu":
            torch.set_num_threads(1)  # the other cores have workers of their own
        opening = self._tokenizer.bos_token_id
        self.opening = int(opening if opening is not None else self._tokenizer.eos_token_id)
        """The token before an answer that stands alone."""

    def encode(self, records: Sequence[Record]) -> "list[Encoded | None]":
        from llamero.model.errors import TemplateError
        from llamero.model.templates import encode_conversations

        rows = [(record.messages, record.input or None) for record in records]
        encoded = encode_conversations(self._tokenizer, rows, errors="return")
        return [None if isinstance(e, TemplateError) else e for e in encoded]

    def measure(self, examples: Sequence[Example | None]) -> list[float | None]:
        """The mean loss in nats of each example's marked tokens, rounded to 4 digits; None for None.

        Examples of like length go together, as many as make 4,096 tokens.
        """
        import torch

        from llamero.model.batches import lay_out
        from llamero.model.loss import token_log_probs

        losses: list[float | None] = [None] * len(examples)
        present = [(i, e) for i, e in enumerate(examples) if e is not None]
        for batch in _batch([(i, len(e[0])) for i, e in present]):
            laid = lay_out([examples[i] or ([], []) for i in batch]).to(self._device)
            with torch.inference_mode():
                log_probs = token_log_probs(self._model, laid).cpu().numpy().astype(np.float64)
            documents = laid.target_documents.cpu().numpy()
            sums = np.bincount(documents, weights=-log_probs, minlength=len(batch))
            counts = np.bincount(documents, minlength=len(batch))
            if not np.isfinite(sums).all():
                raise DataError(
                    "The base model's losses are no numbers: its weights are damaged or overflow. Use another base, or take the step "
                    "`score` out of data.steps."
                )
            for place, i in enumerate(batch):
                losses[i] = round(float(sums[place] / counts[place]), _DIGITS)
        return losses


def _batch(lengths: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of (index, tokens) by length, in batches of at most _BIN_TOKENS (a longer one by itself)."""
    batches: list[list[int]] = []
    room = 0
    for index, length in sorted(lengths, key=lambda pair: (pair[1], pair[0])):
        if length > room:
            batches.append([])
            room = _BIN_TOKENS
        batches[-1].append(index)
        room -= length
    return batches

"""How well a model foretells held-out answers: which examples are measured, their log-probabilities, and the two perplexities."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llamero.evaluation.failures import Diverged
from llamero.model.batches import lay_out, plan_bins
from llamero.model.loss import token_log_probs
from llamero.model.tokens import TokenSet


@dataclass(frozen=True)
class RecordScore:
    """A record's answers: their negative log-probability in nats, and how many tokens that is over."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class Perplexities:
    """`by_record`: mean over records of exp(-log P / n). `by_token`: exp of the mean over all tokens. None for no records."""

    by_record: float | None
    by_token: float | None
    records: int
    tokens: int


def find_record(example_id: str) -> str:
    """The record that an example is of: its id, without the `_<first turn>` of a chunk of a long one."""
    return example_id.partition("_")[0]


def choose_examples(example_ids: Sequence[str], max_records: int) -> list[int]:
    """The examples (indices) of the first `max_records` records by id.

    Ids are hashes of content, so that the choice is random but stays when data grows. A record that was cut into chunks comes
    with all of them.
    """
    records = [find_record(e) for e in example_ids]
    chosen = set(sorted(set(records))[:max_records])
    return [index for index, record in enumerate(records) if record in chosen]


def summarise_scores(scores: Iterable[RecordScore]) -> Perplexities:
    """Both perplexities. Raises Diverged where a log-probability is no number."""
    measured = [s for s in scores if s.tokens]
    tokens = sum(s.tokens for s in measured)
    if not measured:
        return Perplexities(None, None, 0, 0)
    nll = math.fsum(s.nll for s in measured)
    if not math.isfinite(nll):
        raise Diverged(
            "The model's log-probabilities on held-out records are not numbers: its weights diverged in training. "
            "Lower training.learningRate or training.lora.alpha."
        )
    by_record = math.fsum(math.exp(s.nll / s.tokens) for s in measured) / len(measured)
    return Perplexities(by_record, math.exp(nll / tokens), len(measured), tokens)


def score_records(
    model: Any,
    examples: TokenSet,
    chosen: Sequence[int],
    device: str,
    bin_tokens: int,
    on_tokens: Callable[[int], None],
) -> Mapping[str, RecordScore]:
    """The score of each record among the chosen examples, by id, from batches packed without padding.

    `bin_tokens`: tokens of a forward pass (an example that is longer gets one of its own). `on_tokens` is told how many
    tokens are done.
    """
    lengths = [int(examples.lengths[i]) for i in chosen]
    nll: dict[str, float] = {}
    count: dict[str, int] = {}
    done = 0
    for members in plan_bins(lengths, max([bin_tokens, *lengths])):
        indices = [chosen[m] for m in members]
        batch = lay_out([examples[i] for i in indices])
        log_probs = token_log_probs(model, batch.to(device)).double().cpu()
        sums = torch.zeros(len(indices), dtype=torch.float64).index_add_(0, batch.target_documents, log_probs)
        targets = torch.bincount(batch.target_documents, minlength=len(indices))
        for index, log_prob, tokens in zip(indices, sums.tolist(), targets.tolist(), strict=True):
            record = find_record(examples.record_id(index))
            nll[record] = nll.get(record, 0.0) - log_prob
            count[record] = count.get(record, 0) + tokens
        done += batch.tokens
        on_tokens(done)
    return {record: RecordScore(nll[record], count[record]) for record in nll}

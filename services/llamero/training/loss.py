"""The mean loss of a model over a token set, without gradients: what the merged export is judged by."""

from typing import Any

import torch

from llamero.model.batches import lay_out
from llamero.model.loss import sum_response_loss
from llamero.model.tokens import TokenSet
from llamero.training.steps import lay_into_bins


@torch.no_grad()
def measure_loss(
    model: Any,
    tokens: TokenSet,
    device: str,
    bin_tokens: int,
    autocast_dtype: torch.dtype | None,
    max_examples: int | None = None,
) -> float:
    """Mean loss in nats over the trained tokens of the first `max_examples` examples; there must be one such token."""
    was_training = model.training
    model.eval()
    total, targets = 0.0, 0
    examples = range(len(tokens) if max_examples is None else min(max_examples, len(tokens)))
    for chosen in lay_into_bins(examples, tokens.lengths, bin_tokens):
        batch = lay_out([tokens[i] for i in chosen]).to(device)
        with torch.autocast(torch.device(device).type, autocast_dtype, enabled=autocast_dtype is not None):
            loss_sum, count = sum_response_loss(model, batch)
        total, targets = total + float(loss_sum), targets + count
    model.train(was_training)
    return total / targets

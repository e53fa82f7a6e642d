"""The training loss, and the log-probabilities of evaluation, by the same code.

Only the positions that predict a trained token go through the output head, and its logits (vocabulary × tokens) exist for a
chunk of them at a time: for a vocabulary of 128k that is a ninth of the memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llamero.model.attention import forward_kwargs
from llamero.model.batches import Batch

_CHUNK_LOGITS = 1 << 25
"""Logits of a chunk by default: 128 MiB in float32."""


def sum_response_loss(model: Any, batch: Batch, chunk_tokens: int | None = None) -> tuple[torch.Tensor, int]:
    """Cross-entropy in nats, summed over the batch's trained tokens, and their number.

    `model`: a causal language model or a PeftModel around one. `chunk_tokens`: trained tokens whose logits exist at a time, by
    default as many as make 2^25 logits. The sum is float32 and carries gradients where the model trains.
    """
    hidden = hidden_states(model, batch)
    head = _output_head(model)
    size = chunk_tokens or max(_CHUNK_LOGITS // _vocabulary_size(model), 128)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, batch.targets, size):
        chunk, ids = hidden[start : start + size], batch.target_ids[start : start + size]
        if torch.is_grad_enabled() and batch.targets > size:
            loss = loss + checkpoint(_sum_chunk, head, chunk, ids, use_reentrant=False)
        else:
            loss = loss + _sum_chunk(head, chunk, ids)
    return loss, batch.targets


@torch.no_grad()
def token_log_probs(model: Any, batch: Batch, chunk_tokens: int | None = None) -> torch.Tensor:
    """Log-probability in nats of each trained token, float32 [targets] in the batch's order (see Batch.target_documents)."""
    hidden = hidden_states(model, batch)
    head = _output_head(model)
    size = chunk_tokens or max(_CHUNK_LOGITS // _vocabulary_size(model), 128)
    chunks = [
        -F.cross_entropy(head(hidden[s : s + size]).float(), batch.target_ids[s : s + size], reduction="none")
        for s in range(0, batch.targets, size)
    ]
    return torch.cat(chunks) if chunks else hidden.new_zeros(0, dtype=torch.float32)


def hidden_states(model: Any, batch: Batch) -> torch.Tensor:
    """The last hidden states [targets, width] at the positions that predict a trained token."""
    backbone = causal_model(model).get_decoder()
    output = backbone(input_ids=batch.input_ids, **forward_kwargs(batch))
    return output.last_hidden_state[0].index_select(0, batch.target_positions)


def causal_model(model: Any) -> Any:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _sum_chunk(head: Any, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float(), ids, reduction="sum")


def _vocabulary_size(model: Any) -> int:
    return int(causal_model(model).config.get_text_config().vocab_size)


def _output_head(model: Any) -> Any:
    """hidden [n, width] → logits [n, vocabulary], with the scale or cap that some models put on their logits."""
    base = causal_model(model)
    config = base.config.get_text_config()
    head = base.get_output_embeddings()
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale = float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def compute(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if scale != 1.0:
            logits = logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return compute

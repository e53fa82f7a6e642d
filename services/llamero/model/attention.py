"""Per-document attention: documents that share a row never see each other.

Registered with transformers as `llamero_document`. It takes the documents' bounds per forward (`forward_kwargs(batch)`), builds
no mask and needs `use_cache=False`: with a cache or a mask transformers stops seeing the packing, and documents leak into
each other without an error. On a CPU it is a scaled dot product per group of documents of like length; on CUDA the first of flash-attn,
torch's own variable-length attention, flex attention and the CPU's way that runs there. Generation is not its business (`sdpa` is for that).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from llamero.model.batches import Batch, lay_out
from llamero.model.errors import SelfTestError as SelfTestError

NAME = "llamero_document"


@dataclass
class Documents:
    """Where the documents of a row stand. `starts`: int32 [documents + 1] on the device, `lengths` on the host."""

    starts: torch.Tensor
    lengths: tuple[int, ...]
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(self.lengths)


def attention_for(device: str) -> str:
    """The attention implementation to load a model with for packed training on this device."""
    return NAME


def forward_kwargs(batch: Batch) -> dict[str, Any]:
    """What a backbone's forward needs for a packed batch, besides `input_ids`."""
    return {
        "position_ids": batch.position_ids,
        "attention_mask": None,
        "use_cache": False,
        "documents": Documents(batch.starts, batch.lengths),
        # For layers that are not attention (convolutions, state spaces) and read transformers' own names.
        "cu_seq_lens_q": batch.starts,
        "cu_seq_lens_k": batch.starts,
        "max_length_q": max(batch.lengths),
        "max_length_k": max(batch.lengths),
    }


def attend_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, H_kv, T, D] → ([1, T, H, D], None)."""
    _refuse_unknown(module, query, key, attention_mask, kwargs)
    if documents is None:
        documents = _find_documents(query, kwargs.get("position_ids"))
    window = sliding_window if sliding_window and sliding_window < documents.longest else None
    kernel = KERNELS[_choose_kernel(query)]
    return kernel(query, key, value, documents, dropout, scaling, window), None


def _refuse_unknown(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """Refuse what per-document attention would silently compute wrongly."""
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or attention_mask is not None:
        raise SelfTestError(
            "Per-document attention takes one packed row without cache or mask; load the model with sdpa for generation."
        )
    unknown = [n for n in ("softcap", "s_aux", "position_bias") if kwargs.get(n) is not None]
    if unknown or not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        what = ", ".join(unknown) or "attention that is not causal"
        raise SelfTestError(f"The model's attention uses {what}, which per-document attention does not serve.")


def _find_documents(query: torch.Tensor, position_ids: torch.Tensor | None) -> Documents:
    """The documents of a row from its positions, which restart at each; a row without positions is refused."""
    if position_ids is None:
        raise SelfTestError("Per-document attention needs the documents' bounds or position_ids with every forward.")
    firsts = torch.nonzero(position_ids[0] == 0).flatten()
    starts = torch.cat([firsts, firsts.new_tensor([query.shape[2]])]).to(torch.int32)
    return Documents(starts, tuple(starts.diff().tolist()))


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents, float, float | None, int | None], torch.Tensor]


def _attend_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """A scaled dot product per document."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    lengths = list(documents.lengths)
    parts = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window_mask(q, window),
            dropout_p=dropout,
            is_causal=window is None or window >= q.shape[2],
            scale=scaling,
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2)


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """True where a token may look: itself and the `window - 1` before it; None where causality says it all."""
    length = query.shape[2]
    if window is None or window >= length:
        return None
    positions = torch.arange(length, device=query.device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)


KERNELS: dict[str, Kernel] = {"sdpa": _attend_sdpa}


def _choose_kernel(query: torch.Tensor) -> str:
    return "sdpa"


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask of per-document attention: none, the bounds say it all."""


AttentionInterface.register(NAME, attend_documents)
AttentionMaskInterface.register(NAME, _no_mask)


@torch.no_grad()
def run_self_test(model: Any, device: str, seed: int = 0) -> float:
    """Compare the logits of a packed row with those of its documents alone; the largest difference is returned.

    Raises SelfTestError where they differ by more than the dtype's rounding: documents would leak into each other.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_training = model.training
    model.eval()
    try:
        generator = torch.Generator().manual_seed(seed)
        vocabulary = base.get_input_embeddings().weight.shape[0]
        documents = [torch.randint(0, vocabulary, (n,), generator=generator).numpy() for n in (7, 33, 7, 64, 1, 20)]
        ones = [(d, d * 0 + 1) for d in documents]
        packed = _logits(base, lay_out(ones).to(device))
        single = torch.cat([_logits(base, lay_out([one]).to(device)) for one in ones])
    finally:
        model.train(was_training)
    difference = float((packed - single).abs().max() / single.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE[base.dtype]:
        raise SelfTestError(
            f"Packed and single logits of this model differ by {difference:.2g} of their size: documents would leak into each other, "
            "so it can't be trained packed."
        )
    return difference


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest difference of packed and single logits, relative to the largest logit, by the model's dtype."""


def _logits(base: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return base(input_ids=batch.input_ids, **forward_kwargs(batch)).logits[0].float()

"""Per-document attention: documents that share a row never see each other.

Registered with transformers as `llamero_document`. It takes the documents' bounds with each forward (`forward_kwargs(batch)`), builds
no mask and needs `use_cache=False`: with a cache or a mask transformers stops seeing the packing, and documents leak into
each other without an error. Generation is not its business: load or switch to `sdpa` for that
(`model.set_attn_implementation`).

On a CPU each document is a scaled dot product of its own, in float32: the bfloat16 kernel's backward pass is three to four times as slow,
and padding documents of like length into one call gained nothing. On CUDA the first of flash-attn, torch's own variable-length attention and
flex attention that gives the same numbers in `run_self_test`, else the CPU's way.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llamero.model.batches import Batch, lay_out
from llamero.model.errors import SelfTestError as SelfTestError

log = logging.getLogger(__name__)

NAME = "llamero_document"

CUDA_KERNELS = ("flash-attn", "varlen", "flex", "sdpa")
"""Ways to attend on CUDA, the best first; `sdpa`, the only one on a CPU, runs everywhere."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest difference of packed and single logits, relative to the largest logit, by the model's dtype. A leak is far above."""

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_FLASH_HEAD_WIDTH = 256
_unusable: set[str] = set()
"""Kernels that failed the self-test in this process."""


@dataclass
class Documents:
    """Where the documents of a row stand. `starts`: int32 [documents + 1] on the device; `lengths` on the host.

    `masks` keeps flex attention's block masks by window, which all layers of a forward share.
    """

    starts: torch.Tensor
    lengths: tuple[int, ...]
    masks: dict[int | None, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(self.lengths)


def attention_for(device: str) -> str:
    """The attention implementation to load a model with for packed forwards; the kernel is chosen by device and dtype."""
    return NAME


def forward_kwargs(batch: Batch) -> dict[str, Any]:
    """What a model's forward needs for a packed batch, besides `input_ids`."""
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
    """transformers' attention interface: query [1, H, T, D], key and value [1, H_kv, T, D] → ([1, T, H, D], None).

    Raises SelfTestError for what it would compute wrongly: several rows, a cache, a mask, scores that a model alters.
    """
    _refuse_unknown(module, query, key, attention_mask, kwargs)
    if documents is None:
        documents = _find_documents(query, kwargs.get("position_ids"))
    window = sliding_window if sliding_window and sliding_window < documents.longest else None
    kernel = KERNELS[choose_kernel(query.device.type, query.dtype, query.shape[-1], dropout)]
    return kernel(query, key, value, documents, dropout, scaling, window), None


def choose_kernel(device_type: str, dtype: torch.dtype, head_width: int, dropout: float = 0.0) -> str:
    """The kernel for such tensors on this machine: a key of KERNELS."""
    if device_type != "cuda":
        return "sdpa"
    flash = dtype in _FLASH_DTYPES and head_width <= _FLASH_HEAD_WIDTH
    served = {
        "flash-attn": flash and importlib.util.find_spec("flash_attn") is not None,
        "varlen": flash and not dropout and importlib.util.find_spec("torch.nn.attention.varlen") is not None,
        "flex": not dropout,
        "sdpa": True,
    }
    return next(name for name in CUDA_KERNELS if served[name] and name not in _unusable)


def _refuse_unknown(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    if query.shape[0] != 1 or query.shape[2] != key.shape[2] or attention_mask is not None:
        raise SelfTestError(
            "Per-document attention takes one packed row without cache or mask; load the model with sdpa for generation."
        )
    unknown = [n for n in ("softcap", "s_aux", "position_bias") if kwargs.get(n) is not None]
    if unknown or not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        what = ", ".join(unknown) or "attention that is not causal"
        raise SelfTestError(f"The model's attention uses {what}, which per-document attention does not serve.")


def _find_documents(query: torch.Tensor, position_ids: torch.Tensor | None) -> Documents:
    """The documents of a row from its positions, which restart at each."""
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
    """A scaled dot product for each document."""
    dtype = query.dtype
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    lengths = list(documents.lengths)
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
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
        return torch.cat(parts, 2).transpose(1, 2).to(dtype)


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """True where a token may look: itself and the `window - 1` before it; None where causality says it all."""
    length = query.shape[2]
    if window is None or window >= length:
        return None
    positions = torch.arange(length, device=query.device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)


def _attend_flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=documents.starts,
        cu_seqlens_k=documents.starts,
        max_seqlen_q=documents.longest,
        max_seqlen_k=documents.longest,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return out[None]


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        documents.starts,
        documents.starts,
        documents.longest,
        documents.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None]


def _attend_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    if window not in documents.masks:
        documents.masks[window] = _build_block_mask(documents, window)
    out = _flex_attention()(
        query,
        key,
        value,
        block_mask=documents.masks[window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _build_block_mask(documents: Documents, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    length = sum(documents.lengths)
    places = torch.arange(length, device=documents.starts.device)
    owner = torch.bucketize(places, documents.starts[1:].long(), right=True)

    def is_seen(batch: Any, head: Any, q: Any, k: Any) -> Any:
        seen = (owner[q] == owner[k]) & (q >= k)
        return seen if window is None else seen & (q - k < window)

    return create_block_mask(is_seen, None, None, length, length, device=str(documents.starts.device))


@functools.cache
def _flex_attention() -> Any:
    """Compiled once per process, for rows of any length; uncompiled it holds all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


KERNELS: dict[str, Kernel] = {
    "flash-attn": _attend_flash_attn,
    "varlen": _attend_varlen,
    "flex": _attend_flex,
    "sdpa": _attend_sdpa,
}


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask of per-document attention: none, since the bounds say it all."""


AttentionInterface.register(NAME, attend_documents)
AttentionMaskInterface.register(NAME, _no_mask)


def run_self_test(model: Any, device: str, seed: int = 0) -> float:
    """Compare the logits of a packed row with those of its documents alone; the largest difference, relative to the logits' size.

    On CUDA it first settles which kernel is used: one whose numbers or gradients are off is left out for this process.
    Raises SelfTestError where they differ by more than the dtype's rounding: documents would leak into each other.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if torch.device(device).type == "cuda":
        _settle_kernel(base, device)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = base.get_input_embeddings().weight.shape[0]
    rows = [torch.randint(0, vocabulary, (n,), generator=generator).numpy() for n in (7, 33, 7, 64, 1, 20)]
    examples = [(row, row * 0 + 1) for row in rows]
    was_training = model.training
    model.eval()
    try:
        packed = _logits(base, lay_out(examples).to(device))
        single = torch.cat([_logits(base, lay_out([example]).to(device)) for example in examples])
    finally:
        model.train(was_training)
    difference = float((packed - single).abs().max() / single.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE[base.dtype]:
        raise SelfTestError(
            f"Packed and single logits of this model differ by {difference:.2g} of their size: documents would leak into each other, "
            "so it can't be trained packed."
        )
    return difference


@torch.no_grad()
def _logits(base: Any, batch: Batch) -> torch.Tensor:
    """[T, vocabulary] of the model's own forward, so that what it does to its logits is tested too."""
    return base(input_ids=batch.input_ids, **forward_kwargs(batch)).logits[0].float()


def _settle_kernel(base: Any, device: str) -> None:
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    while (name := choose_kernel("cuda", torch.bfloat16, head_width)) != "sdpa":
        try:
            difference = _compare_kernel(name, heads, shared, head_width, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each kernel has a family of errors of its own
            log.warning("attention kernel %s does not run here: %s", name, error)
            _unusable.add(name)
            continue
        if difference <= TOLERANCE[torch.bfloat16]:
            return
        log.warning("attention kernel %s is off by %.2g here", name, difference)
        _unusable.add(name)


def _compare_kernel(name: str, heads: int, shared_heads: int, head_width: int, device: str) -> float:
    """Largest difference of a kernel's output and gradients from the plain one's, relative to their size."""
    lengths = (5, 70, 130)
    starts = torch.tensor([0, 5, 75, 205], dtype=torch.int32, device=device)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, sum(lengths), n, head_width, generator=generator).to(device, torch.bfloat16)
        for n in (heads, shared_heads, shared_heads)
    ]
    results = []
    for kernel in (KERNELS[name], _attend_sdpa):
        inputs = [t.clone().requires_grad_() for t in tensors]
        query, key, value = (t.transpose(1, 2) for t in inputs)
        out = kernel(query, key, value, Documents(starts, lengths), 0.0, None, None)
        gradients = torch.autograd.grad(out.float().square().sum(), inputs)
        results.append([out.detach().float(), *(g.float() for g in gradients)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))

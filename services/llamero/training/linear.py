"""Linear layers with an adapter, computed in one autograd function on CPU: fewer passes over memory, same mathematics.

PEFT's layer makes a copy, three products, a scaling and an addition, each with its own saved tensors; bitsandbytes dequantises a frozen
4-bit weight in every forward and every backward. Here the products accumulate in place, and a weight that the memory has room for is
dequantised once: the very numbers that dequantising each time gives. Layers that need more than plain LoRA keep PEFT's way,
and so does CUDA, where bitsandbytes' own kernels are the fast ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

Weight = Callable[[], torch.Tensor]
"""Gives the frozen weight [out, in] in the compute dtype."""


@dataclass(frozen=True)
class Fusion:
    """What `fuse_adapters` did: layers in all, fused ones, those whose weight is kept dequantised, and the bytes of that."""

    layers: int
    fused: int
    dequantized: int
    dequantized_bytes: int


class _AdapterLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + s (d Aᵀ) Bᵀ, where d is x after dropout (None: x itself).

    x, d [..., in], A [r, in] and B [out, r] in fp32, W frozen. y has W's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: Weight,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        w = weight()
        rows = x.reshape(-1, x.shape[-1]).to(w.dtype)
        inputs = rows if dropped is None else dropped.reshape(rows.shape).to(w.dtype)
        a_cast, b_cast = a.to(w.dtype), (b * scale).to(w.dtype)
        inner = inputs @ a_cast.t()
        y = rows @ w.t() if bias is None else torch.addmm(bias.to(w.dtype), rows, w.t())
        y.addmm_(inner, b_cast.t())
        ctx.save_for_backward(inputs, inner, a_cast, b_cast)
        ctx.weight, ctx.scale, ctx.dtype = weight, scale, x.dtype
        ctx.has_dropout = dropped is not None
        return y.view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, inner, a_cast, b_cast = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1]).to(a_cast.dtype)
        grad_inner = rows @ b_cast
        grad_a = (grad_inner.t() @ inputs).float()
        grad_b = (rows.t() @ inner).float().mul_(ctx.scale)
        grad_x = grad_dropped = None
        shape = (*grad.shape[:-1], inputs.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_x = rows @ ctx.weight()
            if not ctx.has_dropout:
                grad_x.addmm_(grad_inner, a_cast)
            grad_x = grad_x.view(shape).to(ctx.dtype)
        if ctx.has_dropout and ctx.needs_input_grad[1]:
            grad_dropped = (grad_inner @ a_cast).view(shape).to(ctx.dtype)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


def fuse_adapters(model: torch.nn.Module, dtype: torch.dtype, dequantized_bytes_limit: int) -> Fusion:
    """Give each linear layer that carries one plain LoRA adapter the fused forward; the others stay as they are.

    4-bit weights are kept dequantised in `dtype` where all of them together take at most `dequantized_bytes_limit` bytes, else
    dequantised at each use. Undone by `unfuse_adapters`.
    """
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    plain = [m for m in layers if _is_plain(m)]
    quantized = [m for m in plain if _is_quantized(m)]
    size = sum(m.in_features * m.out_features for m in quantized) * dtype.itemsize
    keep = bool(quantized) and size <= dequantized_bytes_limit
    for layer in plain:
        layer.forward = _fused_forward(layer, _frozen_weight(layer, dtype, keep))
    return Fusion(len(layers), len(plain), len(quantized) if keep else 0, size if keep else 0)


def unfuse_adapters(model: torch.nn.Module) -> None:
    """Give every layer PEFT's own forward back, and free the dequantised weights."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.__dict__.pop("forward", None)


def _is_plain(layer: Any) -> bool:
    """Whether the layer is a linear one with exactly one active, unmerged, plain LoRA adapter."""
    adapters = list(layer.active_adapters)
    base = layer.get_base_layer()
    return (
        isinstance(base, torch.nn.Linear)
        and len(adapters) == 1
        and adapters[0] in layer.lora_A
        and not layer.merged
        and not layer.disable_adapters
        and not layer.lora_variant
        and not layer.lora_bias.get(adapters[0], False)
        and not getattr(layer, "fan_in_fan_out", False)
        and (_is_quantized(layer) or base.weight.dtype.is_floating_point)
    )


def _is_quantized(layer: Any) -> bool:
    return getattr(layer.get_base_layer().weight, "quant_state", None) is not None


def _frozen_weight(layer: Any, dtype: torch.dtype, keep: bool) -> Weight:
    parameter = layer.get_base_layer().weight
    if not _is_quantized(layer):
        return lambda: parameter.detach().to(dtype)

    import bitsandbytes.functional as bnb_functional

    def dequantize() -> torch.Tensor:
        return bnb_functional.dequantize_4bit(parameter.data, parameter.quant_state).to(dtype)

    if not keep:
        return dequantize
    kept = dequantize()
    return lambda: kept


def _fused_forward(layer: Any, weight: Weight) -> Callable[..., torch.Tensor]:
    name = next(iter(layer.active_adapters))
    base, a, b = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    dropout, scale = layer.lora_dropout[name], layer.scaling[name]
    has_dropout = not isinstance(dropout, torch.nn.Identity)

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dropped = dropout(x) if has_dropout and layer.training else None
        return _AdapterLinear.apply(x, dropped, weight, base.bias, a.weight, b.weight, scale)

    return forward

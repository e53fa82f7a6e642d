"""Base models: how they are loaded, for training and for measuring.

Only safetensors are read and no code from a model's folder is ever run. Whether a folder may be used as a base is `bases`'
business; what is done with a loaded model (adapters, training, serving) is left to others.

Precision: with `quantization="nf4"` linear layers are held in NF4 with double quantisation and computed in bfloat16, the rest
(embeddings, norms, output head) in bfloat16 (QLoRA, arXiv:2305.14314). Unquantised bases are held in bfloat16, on a CPU
without bfloat16 instructions in float32.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from llamero.model import attention as document_attention
from llamero.model.bases import base_digest as base_digest
from llamero.model.bases import check_base as check_base
from llamero.model.bases import load_tokenizer as load_tokenizer
from llamero.model.bases import read_tokenizer as read_tokenizer
from llamero.model.bases import resolve_base as resolve_base
from llamero.model.errors import ModelError as ModelError


def load_base(
    folder: Path,
    *,
    quantization: Literal["nf4"] | None,
    device: str,
    attention: str | None = None,
    training: bool,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The base model on `device` (`cpu`, `cuda`, `cuda:0`), frozen, without a key-value cache when training.

    `attention`: by default per-document attention for training, transformers' `sdpa` otherwise. `dtype` overrides the choice
    that this module's docstring describes. Raises ModelError.
    """
    check_base(folder)
    dtype = dtype or default_dtype(quantization, device)
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention or (document_attention.NAME if training else "sdpa"),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The base model in {folder} can't be loaded: {error}") from error
    keep_trainable_on_cpu(model)
    model.requires_grad_(False)
    model.config.use_cache = not training
    model.train(training)
    return model


def default_dtype(quantization: Literal["nf4"] | None, device: str) -> torch.dtype:
    """bfloat16, but float32 for an unquantised base on a CPU that has no bfloat16 instructions."""
    if quantization is None and device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16


def keep_trainable_on_cpu(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit layers for CPUs with AVX512-BF16.

    bitsandbytes 0.50 does it at a layer's first evaluation forward, after which gradients with respect to its input are
    silently lost, whatever `.train()` says. Idempotent; needed before any forward.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantize_base(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Replace each 4-bit layer by a plain one with the very numbers that it computes with; in place, the model is returned.

    `dtype` of the plain weights: by default the layer's compute dtype, in which the numbers are exact; float32 holds the same
    numbers. For a base without an adapter: put the adapter on afterwards. The rest of the model is cast only where `dtype`
    is given. A model without 4-bit layers is left as it is but for that cast.
    """
    import bitsandbytes as bnb

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, bnb.nn.Linear4bit):
                setattr(parent, name, _plain_linear(layer, dtype))
    for attribute in ("quantization_config",):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    model.is_loaded_in_4bit = False
    model.is_quantized = False
    model.hf_quantizer = None
    model.quantization_method = None  # while it is set, transformers refuses every cast
    return model if dtype is None else model.to(dtype)


def _plain_linear(layer: Any, dtype: torch.dtype | None) -> torch.nn.Linear:
    import bitsandbytes.functional as bnb_functional

    state = layer.weight.quant_state
    compute = layer.compute_dtype or state.dtype
    weight = bnb_functional.dequantize_4bit(layer.weight.data, state).to(compute)
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(dtype or compute), requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.data.to(compute).to(dtype or compute), requires_grad=False)
    return plain.train(layer.training)

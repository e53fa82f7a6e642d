"""Base models: whether a folder may be used as one, and how it is loaded.

Only safetensors are read and no code from a model's folder is ever run. How files get here is `fetching`'s business; what is
done with a loaded model (adapters, training, serving) is left to others.

Precision: with `quantization="nf4"` linear layers are held in NF4 with double quantisation and computed in bfloat16, the rest
(embeddings, norms, output head) in bfloat16 (QLoRA, arXiv:2305.14314). Unquantised bases are held in bfloat16, on a CPU
without bfloat16 instructions in float32.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llamero import storage
from llamero.model import attention as document_attention
from llamero.model import fetching, templates
from llamero.model.errors import ModelError as ModelError
from llamero.model.fetching import OnProgress, missing_weights, read_json
from llamero.spec.job import BaseModelRef

_DIGESTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


def resolve_base(
    ref: BaseModelRef, cache: Path, token: str | None = None, on_progress: OnProgress | None = None
) -> Path:
    """The local folder of a base model, fetched into `cache` if it is not on this machine.

    Raises ModelError, whose sentence says what is wrong and what to do: no such model, a licence to accept, no network,
    no safetensors, code of its own.
    """
    if ref.name:
        folder = fetching.fetch_from_hub(ref.name, ref.revision, cache, token, on_progress)
    elif ref.uri and storage.is_local(ref.uri):
        folder = storage.local_path(ref.uri)
    else:
        folder = fetching.fetch_from_store(str(ref.uri), cache, token)
    check_base(folder)
    return folder


def check_base(folder: Path) -> None:
    """Refuse a folder that holds no loadable base. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"The base model's folder {folder} does not exist.")
    config = read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} is no model folder: config.json is missing.")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (read_json(folder / name) or {}):
            raise ModelError(
                f"{folder / name} has an auto_map, which names code of the model's own; llamero never runs such code. Use a base that "
                "transformers loads by itself."
            )
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise ModelError(f"{folder} has no tokenizer: tokenizer.json is missing.")
    missing = missing_weights(folder)
    if missing:
        raise ModelError(f"{folder} has no complete safetensors weights: {missing}.")
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is already quantised; name the unquantised model, which llamero quantises itself where the method asks for it."
        )


def base_digest(folder: Path) -> str:
    """sha256 in hex over the sorted lines `<sha256>  <name>` of config, tokenizer and weights.

    In the hub's cache a weight file is a link to a blob that is named by its sha256, which saves reading it.
    """
    names = sorted({n for n in _DIGESTED if (folder / n).is_file()} | {p.name for p in folder.glob("*.safetensors")})
    lines = (f"{_digest_file(folder / n)}  {n}\n" for n in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_tokenizer(folder: Path, template: str = "base", new_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """The folder's tokenizer with the chosen chat template installed (`tokenizer.chat_template`) and checked.

    `template`: `base` for the folder's own, or a name of `templates.TEMPLATES`. `new_tokens` are added to the vocabulary;
    they are not special, so that they can stand in the data. Raises ModelError, or TemplateError for a bad template.
    """
    tokenizer = read_tokenizer(folder)
    if new_tokens:
        tokenizer.add_tokens(list(new_tokens))
    if template != "base":
        if template not in templates.TEMPLATES:
            raise ModelError(f"There is no chat template {template}: use base, {', '.join(templates.TEMPLATES)}.")
        tokenizer.chat_template = templates.template_source(tokenizer, template)
    templates.check_template(tokenizer)
    return tokenizer


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as it stands in the folder, unchecked. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} can't be read: {error}") from error


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


def _digest_file(path: Path) -> str:
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if _BLOB_NAME.fullmatch(blob) else storage.sha256_file(path)

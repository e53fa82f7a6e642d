"""Base models: where their files come from, whether they may be used, and how they are loaded.

Only safetensors are read and no code from a model's folder is ever run. What is done with a loaded model (adapters,
training, serving) is left to others.

Precision: with `quantization="nf4"` linear layers are held in NF4 with double quantisation and computed in bfloat16, the rest
(embeddings, norms, output head) in bfloat16 (QLoRA, arXiv:2305.14314). Unquantised bases are held in bfloat16, on a CPU
without bfloat16 instructions in float32.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
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
from llamero.model import templates
from llamero.model.errors import ModelError as ModelError
from llamero.spec.job import BaseModelRef
from llamero.spec.progress import Progress

OnProgress = Callable[[Progress], None]

BASE_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched of a base: weights as safetensors, configs, tokenizer files. Pickled weights and code are not."""

_DIGESTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_HUB = "https://huggingface.co"
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


def resolve_base(
    ref: BaseModelRef, cache: Path, token: str | None = None, on_progress: OnProgress | None = None
) -> Path:
    """The local folder of a base model, fetched into `cache` if it is not on this machine.

    Raises ModelError, whose sentence says what is wrong and what to do: no such model, a licence to accept, no network,
    no safetensors, code of its own.
    """
    if ref.name:
        folder = _resolve_hub(ref.name, ref.revision, cache, token, on_progress)
    elif ref.uri and storage.is_local(ref.uri):
        folder = storage.local_path(ref.uri)
    else:
        folder = _resolve_remote(str(ref.uri), cache, token)
    check_base(folder)
    return folder


def check_base(folder: Path) -> None:
    """Refuse a folder that holds no loadable base. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"The base model's folder {folder} does not exist.")
    config = _read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} is no model folder: config.json is missing.")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (_read_json(folder / name) or {}):
            raise ModelError(
                f"{folder / name} has an auto_map, which names code of the model's own; llamero never runs such code. Use a base that "
                "transformers loads by itself."
            )
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise ModelError(f"{folder} has no tokenizer: tokenizer.json is missing.")
    missing = _missing_weights(folder)
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


def _resolve_hub(
    name: str, revision: str | None, cache: Path, token: str | None, on_progress: OnProgress | None
) -> Path:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    api = HfApi(endpoint=endpoint, token=token)
    caches = (Path(constants.HF_HUB_CACHE), cache / "hub")
    for place in caches:
        try:
            found = Path(
                api.snapshot_download(
                    name, revision=revision, cache_dir=place, local_files_only=True, allow_patterns=list(BASE_FILES)
                )
            )
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        if (found / "config.json").is_file() and not _missing_weights(found):
            return found
    pinned = f"{name}@{revision}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(
            f"{pinned} is not in the local cache ({caches[0]}) and HF_HUB_OFFLINE is set: fetch it beforehand with `hf download {name} "
            f"--revision {revision}`, or name a local folder by baseModel.uri."
        )
    page = f"{endpoint}/{name}"
    try:
        return Path(
            api.snapshot_download(
                name,
                revision=revision,
                cache_dir=caches[1],
                allow_patterns=list(BASE_FILES),
                tqdm_class=_progress_bar(name, on_progress),
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{name} asks for its licence to be accepted (HTTP {error.response.status_code}): accept it at {page} and give a token of that "
            "account by baseModel.secretRef."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {revision} (HTTP 404): take a commit from {page}/commits/main."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name} does not exist or is private (HTTP {error.response.status_code}): check the name at {page}; a private or gated model "
            "needs its licence accepted there and a token by baseModel.secretRef."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelError(
                f"{name} may not be read with this token (HTTP {status}): see its licence page {page} and baseModel.secretRef."
            ) from error
        raise ModelError(f"{pinned} can't be fetched from {endpoint} (HTTP {status}): try again later.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"{pinned} is not in the local cache and {endpoint} can't be reached: {type(error).__name__}. Check the network or HF_ENDPOINT, "
            "or name a local folder by baseModel.uri."
        ) from error


def _progress_bar(name: str, on_progress: OnProgress | None) -> type | None:
    """A bar in the hub's form that reports the bytes fetched instead of drawing."""
    if on_progress is None:
        return None
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    report = on_progress

    class Reported(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = False
            kwargs["file"] = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives as long as the bar
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            unit = str(self.unit)
            report(Progress("Preparing", f"fetch {name}", float(self.n), self.total, unit))
            return shown

        def close(self) -> None:
            super().close()
            self.fp.close()

    return Reported


def _resolve_remote(uri: str, cache: Path, token: str | None) -> Path:
    """A base in an object store, kept in the cache by the digest of its file list, so that changed files are fetched anew."""
    try:
        listed = [f for f in storage.list_files(uri, token) if Path(f).match("*.*")]
        wanted = [f for f in listed if any(Path(f).match(p) for p in BASE_FILES)]
        tag = hashlib.sha256("".join(f"{f} {storage.fingerprint_uri(f, token)}\n" for f in wanted).encode()).hexdigest()
        folder = cache / "bases" / tag[:32]
        done = folder / ".complete"
        if not done.is_file():
            storage.download_folder(uri, folder, BASE_FILES, token)
            done.touch()
    except storage.StorageError as error:
        raise ModelError(f"The base model can't be fetched: {error}") from error
    return folder


def _missing_weights(folder: Path) -> str | None:
    """What is missing of the safetensors, in words; None where all are there."""
    index = _read_json(folder / "model.safetensors.index.json")
    if index is not None:
        names = sorted(set(index.get("weight_map", {}).values()))
        absent = [n for n in names if not (folder / n).is_file()]
        return f"{', '.join(absent[:3])} of {len(names)} files not found" if absent or not names else None
    if (folder / "model.safetensors").is_file():
        return None
    pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
    if pickled:
        return f"only pickled weights ({pickled[0]}), which can hold code; convert them to safetensors"
    return "model.safetensors not found"


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _digest_file(path: Path) -> str:
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if _BLOB_NAME.fullmatch(blob) else storage.sha256_file(path)

"""LoRA adapters: built from a job's recipe, attached to a base, saved as plain LoRA, loaded and merged.

Adapter weights are float32 from the first step to the file: a bfloat16 adapter loses most updates of a small learning rate, and a
float32 file resumes, merges and measures exactly what was trained. Engines cast it when they load it. What an engine would
drop of an adapter is `adapter_checks`' business.
"""

import contextlib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import EvaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamero import storage
from llamero.model.adapter_checks import CONFIG as CONFIG
from llamero.model.adapter_checks import WEIGHTS as WEIGHTS
from llamero.model.adapter_checks import check_adapter as check_adapter
from llamero.model.attention import forward_kwargs
from llamero.model.batches import Batch
from llamero.model.errors import ModelError as ModelError
from llamero.spec.digest import digest_files
from llamero.spec.job import LoraSpec
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import FileEntry

Method = Literal["qlora", "lora"]

# A full decomposition takes minutes for a wide matrix; 16 power iterations are what PEFT's authors advise there.
_FULL_SVD_WIDTH = 2048
_INITIAL = "_llamero_initial_adapter"


def build_lora_config(
    spec: LoraSpec,
    method: Method,
    token_indices: list[int] | dict[str, list[int]] | None = None,
    linear_modules: list[str] | None = None,
) -> LoraConfig:
    """PEFT's configuration of a job's adapter; `token_indices` are the new tokens' ids, or those by layer.

    By default all linear layers but the output head get an adapter; `linear_modules` are their names, which PEFT wants spelt out where
    only some layers get one. Raises ModelError for PiSSA where it can't be exported.
    """
    targets: list[str] | str = linear_modules if linear_modules and spec.layers else "all-linear"
    if spec.init == "pissa" and method != "lora":
        raise ModelError("training.lora.init pissa needs the weights in full: use training.method lora, or init eva.")
    if spec.init == "pissa" and spec.use_dora:
        raise ModelError(
            "training.lora.init pissa with useDora can't be exported as plain LoRA: leave one of them out."
        )
    options: dict[str, Any] = {}
    if spec.init == "eva":
        # rho 1 keeps every layer at the recipe's rank: TGI drops ranks that differ by layer.
        options = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=_as_number(spec.alpha),
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=spec.use_dora,
        target_modules=list(spec.target_modules) if spec.target_modules else targets,
        layers_to_transform=list(spec.layers) if spec.layers else None,
        rank_pattern=dict(spec.rank_pattern),
        alpha_pattern={k: _as_number(v) for k, v in spec.alpha_pattern.items()},
        modules_to_save=list(spec.modules_to_save) or None,
        trainable_token_indices=token_indices or None,
        bias="none",
        **options,
    )


def attach_adapter(
    base: PreTrainedModel,
    spec: LoraSpec,
    init_from: Path | None = None,
    eva_batches: Iterable[Batch] | None = None,
    *,
    method: Method = "qlora",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PeftModel:
    """A trainable adapter on the base: a new one by the recipe, or the one in `init_from` to go on from.

    Seed torch before: the A matrices are random. `eva_batches` are batches of the training data, needed for init `eva`;
    `tokenizer` (with the recipe's new tokens) is needed where there are new tokens. Init `pissa` turns the base to float32 in
    place, since its residual would be rounded otherwise. Raises ModelError.
    """
    token_ids = _new_token_ids(spec, tokenizer)
    if tokenizer is not None:
        _make_room(base, len(tokenizer))
    if init_from is not None:
        model = load_adapter(base, init_from, trainable=True)
        _refuse_other_shape(model.peft_config["default"], spec, init_from)
        return _finish(model)
    _refuse_missing_layers(base, spec)
    config = build_lora_config(spec, method, _token_layers(base, token_ids), _linear_modules(base))
    if spec.init == "pissa":
        base.float()
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise ModelError(f"training.lora does not fit this base model: {error}") from error
    if spec.init == "eva":
        _initialise_eva(model, eva_batches)
    elif spec.init == "pissa":
        _initialise_pissa(model)
    return _finish(model)


def load_adapter(
    base: PreTrainedModel | PeftModel, folder: Path, name: str = "default", *, trainable: bool = False
) -> PeftModel:
    """Put the adapter in `folder` on the base under `name`, frozen unless `trainable`; a further one joins those already there.

    Raises ModelError where the folder holds no adapter in safetensors that fits the base.
    """
    config = _read_config(folder)
    _make_room(base, _highest_token(config) + 1)
    try:
        if isinstance(base, PeftModel):
            base.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            model = base
        else:
            model = PeftModel.from_pretrained(base, str(folder), adapter_name=name, is_trainable=trainable)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"The adapter in {folder} does not fit this base model: {error}") from error
    return model.train(trainable)


def save_adapter(
    model: PeftModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base_name: str | None = None,
    name: str = "default",
) -> None:
    """Write the adapter as plain LoRA: float32 safetensors and config, and with `tokenizer` its files and chat_template.jinja.

    Any engine can put it on the untouched base: what PiSSA took from the base is given back, at twice the rank, and ways of
    initialising are left out. Each file appears whole. The folder's manifest is written by the caller, last.
    """
    config = model.peft_config[name].to_dict()
    weights = {
        key: tensor.detach().to("cpu", copy=True).contiguous()
        for key, tensor in get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).items()
    }
    initial: dict[str, torch.Tensor] | None = model.__dict__.get(_INITIAL)
    if initial:
        weights = {key: _give_back(key, tensor, initial) for key, tensor in weights.items()}
        config = _double_rank(config)
    config |= {"init_lora_weights": True, "eva_config": None, "inference_mode": True}
    config["base_model_name_or_path"] = base_name or config.get("base_model_name_or_path")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.replace(folder / WEIGHTS)
    storage.write_atomically(folder / CONFIG, json.dumps(_plain(config), indent=2, sort_keys=True) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def describe_adapter(folder: Path) -> tuple[list[FileEntry], str]:
    """The folder's files but its manifest, and the sha256 that names the adapter (see AdapterManifest)."""
    names = [p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST_NAME and not p.name.startswith(".")]
    files = storage.describe_files(folder, names)
    return files, digest_files(files)


def merge_adapter(base: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The base with the adapter merged into its weights, in place; sums are made in float32 and cast to `dtype` at the end.

    `base` must be plain: merging into NF4 rounds the update away (see loading.dequantize_base). Raises ModelError.
    """
    if getattr(base, "is_loaded_in_4bit", False):
        raise ModelError("An adapter can't be merged into a 4-bit base: dequantise it first.")
    merged = load_adapter(base.float(), folder).merge_and_unload(safe_merge=True)
    return merged.to(dtype)


def trainable_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name. Raises ModelError where one is not float32 (after a load that cast them)."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = [name for name, parameter in found.items() if parameter.dtype != torch.float32]
    if wrong or not found:
        raise ModelError(
            f"{len(wrong)} adapter weights are not float32, such as {wrong[0]}."
            if wrong
            else "The adapter has no weights to train."
        )
    return found


def _finish(model: PeftModel) -> PeftModel:
    """float32 for everything that is trained, also modules that are trained in full."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainable_parameters(model)
    return model.train()


def _as_number(value: float) -> int | float:
    """Engines read alpha as an integer where it is one."""
    return int(value) if float(value).is_integer() else value


def _new_token_ids(spec: LoraSpec, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if not spec.new_tokens:
        return []
    if tokenizer is None:
        raise ModelError("training.lora.newTokens need the tokenizer that they were added to.")
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in spec.new_tokens]
    if len(set(ids)) < len(ids) or None in ids:
        raise ModelError("training.lora.newTokens has tokens that are not in the tokenizer.")
    return sorted(ids)


def _linear_modules(base: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside blocks, such as q_proj; the output head is not among them."""
    head = base.get_output_embeddings()
    linear = [name for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sorted({name.rsplit(".", 1)[-1] for name in linear})


def _refuse_missing_layers(base: PreTrainedModel, spec: LoraSpec) -> None:
    count = int(base.config.get_text_config().num_hidden_layers)
    missing = [layer for layer in spec.layers or () if not 0 <= layer < count]
    if missing:
        raise ModelError(f"training.lora.layers names layer {missing[0]}, and this base has layers 0 to {count - 1}.")


def _token_layers(base: PreTrainedModel, token_ids: list[int]) -> dict[str, list[int]] | None:
    """The layers whose rows of the new tokens are trained: the embedding, and the output head where it is not the same matrix."""
    if not token_ids:
        return None
    modules = [base.get_input_embeddings()]
    if not base.config.get_text_config().tie_word_embeddings:
        modules.append(base.get_output_embeddings())
    names = {module: name for name, module in base.named_modules()}
    return {names[m].rsplit(".", 1)[-1]: token_ids for m in modules}


def _make_room(base: PreTrainedModel | PeftModel, tokens: int) -> None:
    """Rows for new tokens; their values are the adapter's, so how new rows are filled does not matter to a loaded one."""
    # Not get_base_model(), which asks the active adapter: the last one may have been deleted.
    inner = base.base_model.model if isinstance(base, PeftModel) else base
    if tokens <= inner.get_input_embeddings().weight.shape[0]:
        return
    if not isinstance(inner.get_input_embeddings(), torch.nn.Embedding):
        raise ModelError("Adapters with different new tokens can't share one base: load each on a base of its own.")
    inner.resize_token_embeddings(tokens)
    inner.requires_grad_(False)


def _highest_token(config: dict[str, Any]) -> int:
    indices = config.get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return max((max(ids) for ids in lists if ids), default=-1)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no adapter: {CONFIG} and {WEIGHTS} are needed (only safetensors are read).")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} is no JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')}; only LORA is served.")
    if "auto_map" in config:
        raise ModelError(f"{folder / CONFIG} names code of its own (auto_map), which llamero never runs.")
    return config


def _refuse_other_shape(config: PeftConfig, spec: LoraSpec, folder: Path) -> None:
    wanted = {"rank": spec.rank, "alpha": spec.alpha, "rslora": spec.rslora, "useDora": spec.use_dora}
    found = {"rank": config.r, "alpha": config.lora_alpha, "rslora": config.use_rslora, "useDora": config.use_dora}
    differing = [f"{k} {found[k]} there, {wanted[k]} here" for k in wanted if wanted[k] != found[k]]
    if differing:
        raise ModelError(
            f"The adapter in {folder} has another shape than training.lora says ({'; '.join(differing)}): give the manifest the adapter's "
            "shape, or start from the base."
        )


def _initialise_eva(model: PeftModel, batches: Iterable[Batch] | None) -> None:
    """A matrices from the main directions of each layer's input (arXiv:2410.07170)."""
    found = list(batches or ())
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    rank = max(layer.r["default"] for layer in layers)
    narrowest = min(layer.in_features for layer in layers)
    if not found or max(batch.tokens for batch in found) < rank or rank > narrowest:
        raise ModelError(
            f"training.lora.init eva needs a batch of at least {rank} tokens and layers at least as wide as the rank (narrowest: "
            f"{narrowest}): lower training.lora.rank, or use init default."
        )
    # PEFT prints where a batch is too small; a phase's standard output is for progress.
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        initialize_lora_eva_weights(
            model,
            dataloader=[batch for batch in found if batch.tokens >= rank],
            forward_fn=_run_backbone,
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=_flatten_layer_input,
            show_progress_bar=False,
        )


def _run_backbone(model: PeftModel, batch: Batch) -> None:
    model.get_base_model().get_decoder()(input_ids=batch.input_ids, **forward_kwargs(batch))


def _flatten_layer_input(layer_input: Any, model_input: Any, layer_name: str) -> torch.Tensor:
    tensor = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    return tensor.reshape(-1, tensor.shape[-1]).float()


def _initialise_pissa(model: PeftModel) -> None:
    """A and B from the weights' main singular vectors, which are taken from the base (arXiv:2404.02948); float32 throughout."""
    initial: dict[str, torch.Tensor] = {}
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        narrow = min(layer.in_features, layer.out_features)
        if layer.r["default"] > narrow:
            raise ModelError(
                f"training.lora.init pissa: rank {layer.r['default']} is more than the {narrow} of {layer_name}."
            )
        layer.pissa_init("default", "pissa" if narrow <= _FULL_SVD_WIDTH else "pissa_niter_16")
        for part in ("lora_A", "lora_B"):
            matrix = getattr(layer, part)["default"].weight
            matrix.data = matrix.data.contiguous()
            initial[f"{layer_name}.{part}.weight"] = matrix.detach().to("cpu", copy=True)
    model.__dict__[_INITIAL] = initial


def _give_back(key: str, tensor: torch.Tensor, initial: dict[str, torch.Tensor]) -> torch.Tensor:
    """BA - B₀A₀ as one product: [B, -B₀] · [A; A₀]."""
    if key not in initial:
        return tensor
    if key.endswith("lora_A.weight"):
        return torch.cat([tensor, initial[key]], dim=0)
    return torch.cat([tensor, -initial[key]], dim=1).contiguous()


def _double_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Twice the rank at the same scale: alpha / r, or with rsLoRA alpha / sqrt(r)."""
    factor = math.sqrt(2) if config["use_rslora"] else 2
    return config | {
        "r": config["r"] * 2,
        "lora_alpha": _as_number(config["lora_alpha"] * factor),
        "rank_pattern": {k: v * 2 for k, v in config["rank_pattern"].items()},
        "alpha_pattern": {k: _as_number(v * factor) for k, v in config["alpha_pattern"].items()},
    }


def _plain(value: Any) -> Any:
    """JSON values in a stable order: sets become sorted lists, enums their values."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return getattr(value, "value", value)

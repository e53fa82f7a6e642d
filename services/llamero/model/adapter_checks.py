"""What is wrong with an adapter folder: broken or foreign files, and what an engine would silently drop or refuse.

Reads the adapter's config and weights and the base's config and weight headers; loads no model, and neither torch nor PEFT: an
agent beside an engine has neither. What each engine serves was read from its source: text-generation-inference 3.3.7 and vLLM.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError

from llamero.model.bases import base_digest
from llamero.model.tensorfiles import find_unnumbered, read_shapes
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import AdapterManifest
from llamero.storage import find_damage

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

Engine = Literal["tgi", "vllm", "cpu"]

TGI_MODULES = frozenset(
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "c_proj", "c_fc"]
)
"""Module types that TGI puts an adapter on."""

VLLM_LARGEST_RANK = 512
MAX_FAULTS_TOLD = 3

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(?P<layer>\d+)\.")


@dataclass(frozen=True)
class _Adapter:
    """An adapter folder as read: config, and the shape of each tensor by its key."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    def pairs(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of A and B by module."""
        found: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for key, shape in self.shapes.items():
            if match := _LORA_KEY.fullmatch(key):
                found[match["module"]][match["part"]] = shape
        return found

    def others(self) -> list[str]:
        """Tensors that are no LoRA matrices: magnitudes, embeddings, modules saved in full."""
        return [key for key in self.shapes if not _LORA_KEY.fullmatch(key)]


def check_adapter(
    folder: Path, base_folder: Path, engine: Engine = "tgi", *, base_sha256: str | None = None
) -> list[str]:
    """What is wrong with an adapter folder for an engine, a sentence each; empty where it is served whole.

    Says what any engine would choke on (missing or pickled files, damage against its manifest, another base, wrong shapes, values that are
    not finite), then what this engine would drop or refuse. `base_sha256` is the base's digest where it is known: it is read otherwise.
    """
    adapter = _read_adapter(folder)
    if isinstance(adapter, str):
        return [adapter]
    problems = _check_manifest(folder, base_folder, base_sha256)
    problems += _check_shapes(adapter, base_folder) + _check_values(adapter)
    return problems + _ENGINE_CHECKS[engine](adapter, base_folder)


def shorten_faults(faults: Sequence[str]) -> str:
    """The first few of them as one text, and how many more there are."""
    more = len(faults) - MAX_FAULTS_TOLD
    return " ".join(faults[:MAX_FAULTS_TOLD]) + (f" And {more} more of the kind." if more > 0 else "")


def _read_adapter(folder: Path) -> _Adapter | str:
    if not (folder / CONFIG).is_file():
        return f"{folder} holds no adapter: {CONFIG} is missing."
    if not (folder / WEIGHTS).is_file():
        pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        if pickled:
            return f"{folder / pickled[0]} is a pickle, which can hold code: save the adapter as {WEIGHTS}."
        return f"{folder} holds no adapter: {WEIGHTS} is missing."
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{folder / CONFIG} is no JSON: {error}."
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        return f"{folder / CONFIG} describes no LoRA adapter."
    fault = _find_config_fault(config)
    if fault:
        return f"{folder / CONFIG} {fault}."
    try:
        shapes = read_shapes(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        return f"{folder / WEIGHTS} can't be read as safetensors: {error}."
    return _Adapter(folder, config, shapes)


def _find_config_fault(config: dict[str, Any]) -> str | None:
    """What keeps the numbers that the checks go by from being read."""
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        return "gives no rank (r)"
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(isinstance(v, (int, float)) for v in pattern.values()):
            return f"has a {name} that is no table of numbers"
        try:
            [re.compile(key) for key in pattern]
        except re.error as error:
            return f"has a {name} with a key that is no pattern ({error})"
    return None


def _check_manifest(folder: Path, base_folder: Path, base_sha256: str | None) -> list[str]:
    """Damage, and a base that it was not trained on, where the adapter has a manifest."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return []
    try:
        manifest = AdapterManifest.model_validate_json(path.read_bytes())
    except ValidationError:
        return [f"{path} is no adapter manifest."]
    damage = find_damage(folder, manifest.files)
    problems = [damage] if damage else []
    if manifest.base_sha256 != (base_sha256 or base_digest(base_folder)):
        problems.append(f"It was trained on another base ({manifest.base}) than {base_folder}.")
    return problems


def _check_shapes(adapter: _Adapter, base_folder: Path) -> list[str]:
    base = {
        key.removesuffix(".weight"): shape
        for path in sorted(base_folder.glob("*.safetensors"))
        for key, shape in read_shapes(path).items()
    }
    problems = []
    pairs = adapter.pairs()
    if not pairs:
        problems.append(f"{adapter.folder / WEIGHTS} holds no LoRA matrices.")
    for module, pair in pairs.items():
        if len(pair) < 2:
            problems.append(f"{module} has only one of its two LoRA matrices.")
            continue
        rank = _rank_of(module, adapter.config)
        if len(pair["A"]) != 2 or len(pair["B"]) != 2:
            problems.append(f"{module} has LoRA tensors that are no matrices.")
            continue
        (rank_a, width_in), (width_out, rank_b) = pair["A"], pair["B"]
        if (rank_a, rank_b) != (rank, rank):
            problems.append(f"{module} has rank {rank_a} (A) and {rank_b} (B), where {CONFIG} says {rank}.")
        if base.get(module) is None:
            if not _is_tied_head(module, base_folder):
                problems.append(f"{module} is not in the base model.")
        elif base[module] != (width_out, width_in):
            problems.append(
                f"{module} is made for a {width_out} × {width_in} matrix, where the base's is {' × '.join(map(str, base[module]))}."
            )
    return problems


def _rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank that the config gives a module: by the first key of rank_pattern that is the module's name or its end, as PEFT has it."""
    pattern = config.get("rank_pattern") or {}
    key = next((k for k in pattern if re.fullmatch(rf"(?:.*\.)?(?:{k})", module)), None)
    return int(config.get("r", 0) if key is None else pattern[key])


def _is_tied_head(module: str, base_folder: Path) -> bool:
    return module == "lm_head" and bool(_base_config(base_folder).get("tie_word_embeddings"))


def _base_config(base_folder: Path) -> dict[str, Any]:
    return json.loads((base_folder / "config.json").read_text(encoding="utf-8"))


def _check_values(adapter: _Adapter) -> list[str]:
    bad = find_unnumbered(adapter.folder / WEIGHTS)
    return [f"{len(bad)} tensors hold values that are not finite, such as {bad[0]}."] if bad else []


def _check_tgi(adapter: _Adapter, base_folder: Path) -> list[str]:
    config, pairs = adapter.config, adapter.pairs()
    problems = []
    others = sorted(p.name for p in adapter.folder.glob("*.safetensors") if p.name != WEIGHTS)
    if others:
        problems.append(
            f"TGI merges all safetensors of the folder into the adapter: take {', '.join(others)} out of it."
        )
    if any(c in str(adapter.folder) for c in ",=@"):
        problems.append("TGI can't take an adapter from a path with a comma, an equals sign or an at sign.")
    problems += [f"TGI drops {what}." for what in _beyond_plain_lora(config, adapter.others())]
    if config.get("rank_pattern"):
        problems.append("TGI drops rankPattern: it takes every module for one rank.")
    if config.get("alpha_pattern"):
        problems.append("TGI drops alphaPattern: every module would be scaled by the one alpha.")
    types = {module.rsplit(".", 1)[-1] for module in pairs}
    unserved = sorted(types - TGI_MODULES)
    if unserved:
        problems.append(f"TGI drops adapters on {', '.join(unserved)}: it serves {', '.join(sorted(TGI_MODULES))}.")
    layers = _layer_count(base_folder)
    for kind in sorted(types & TGI_MODULES):
        present = {int(m["layer"]) for name in pairs if name.endswith(f".{kind}") and (m := _LAYER.search(f".{name}"))}
        missing = sorted(set(range(layers)) - present)
        if missing:
            problems.append(
                f"TGI drops {kind} in all layers, because {len(missing)} of {layers} have none (such as layer {missing[0]})."
            )
    return problems


def _check_vllm(adapter: _Adapter, base_folder: Path) -> list[str]:
    config = adapter.config
    problems = [f"vLLM refuses {what}." for what in _beyond_plain_lora(config, adapter.others())]
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        problems.append("vLLM ignores rankPattern and alphaPattern: modules would be scaled by the one alpha and rank.")
    if config.get("r", 0) > VLLM_LARGEST_RANK:
        problems.append(f"vLLM serves ranks up to {VLLM_LARGEST_RANK}, and this one has {config['r']}.")
    return problems


def _check_cpu(adapter: _Adapter, base_folder: Path) -> list[str]:
    """PEFT serves whatever it trained."""
    return []


def _beyond_plain_lora(config: dict[str, Any], other_tensors: list[str]) -> list[str]:
    """What goes beyond pairs of LoRA matrices, which engines other than ours don't serve."""
    found = []
    if config.get("modules_to_save"):
        found.append(f"modulesToSave ({', '.join(config['modules_to_save'])})")
    if config.get("use_dora"):
        found.append("DoRA's magnitudes")
    if config.get("trainable_token_indices"):
        found.append("newTokens' embeddings; merge the adapter to serve it")
    if config.get("bias", "none") != "none":
        found.append(f"trained biases ({config['bias']})")
    if other_tensors and not found:
        found.append(f"tensors that are no LoRA matrices, such as {other_tensors[0]}")
    return found


def _layer_count(base_folder: Path) -> int:
    config = _base_config(base_folder)
    config = config.get("text_config", config)
    return int(config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0)


_ENGINE_CHECKS = {"tgi": _check_tgi, "vllm": _check_vllm, "cpu": _check_cpu}

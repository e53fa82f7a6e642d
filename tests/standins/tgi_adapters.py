"""What text-generation-inference makes of an adapter's folder: all that it drops without a word, and what fails its start.

Read from its source, version 3.3 (server/text_generation_server/utils/adapter.py, adapters/lora.py, models/model.py).
"""

import json
from pathlib import Path

from standins.llama import Llama, LoraPair
from standins.weights import Array, read_tensors

LAYER_TYPES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


class AdapterFault(Exception):
    """An adapter that the server can't start with."""


def parse_lora_adapters(text: str) -> dict[str, Path | None]:
    """`name=/path,name2=/path2`; a name alone is one of the hub's. Raises AdapterFault for more than one `=`."""
    found: dict[str, Path | None] = {}
    for entry in text.split(",") if text else []:
        parts = entry.strip().split("=")
        if len(parts) > 2:
            raise AdapterFault(f"Invalid LoRA adapter format: {entry}")
        found[parts[0]] = Path(parts[1]) if len(parts) == 2 else None
    return found


def load_adapter(base: Llama, name: str, folder: Path | None) -> Llama:
    """The base with what is kept of the adapter. Raises AdapterFault."""
    if folder is None:
        raise AdapterFault(f"{name}: an adapter without a path is fetched from the hub, which is out of reach")
    config = _read_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AdapterFault(f"No local weights found in {folder} with extension .safetensors")
    tensors: dict[str, Array] = {}
    for path in files:  # every one of them, and of equal names the last one's
        tensors |= read_tensors(path)
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    pairs: dict[str, LoraPair] = {}
    for part, types in LAYER_TYPES.items():
        for kind in types:
            pairs |= _pairs_of_type(base, part, kind, tensors, scale)
    try:
        return base.with_adapter(pairs)
    except ValueError as error:
        raise AdapterFault(str(error)) from error


def _read_config(folder: Path) -> dict[str, float]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise AdapterFault(f"Can't find 'adapter_config.json' at '{folder}'")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise AdapterFault(f"{path}: {error}") from error
    if config.get("peft_type") != "LORA":
        raise AdapterFault(f"{path}: {config.get('peft_type')} is no LoRA")
    return config  # type: ignore[no-any-return]


def _pairs_of_type(base: Llama, part: str, kind: str, tensors: dict[str, Array], scale: float) -> dict[str, LoraPair]:
    """The type's matrices in all layers, or none at all where one layer lacks them: then the whole type is dropped."""
    pairs: dict[str, LoraPair] = {}
    for layer in range(base.shape.layers):
        module = f"model.layers.{layer}.{part}.{kind}"
        a, b = (tensors.get(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
        if a is None or b is None:
            return {}
        pairs[module] = LoraPair(a, b, scale)
    if len({(pair.a.shape, pair.b.shape) for pair in pairs.values()}) > 1:
        raise AdapterFault(f"stack expects each tensor to be equal size: {kind} has different ranks in its layers")
    return pairs

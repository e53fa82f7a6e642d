"""vLLM's adapters: checked when they are loaded, kept in a cache of limited size, gone with the process.

Read from its source (vllm/lora/peft_helper.py, vllm/lora/worker_manager.py, vllm/entrypoints/openai/models/serving.py).
"""

import json
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standins.llama import Llama, LoraPair
from standins.weights import WeightsError, read_tensors

BLOCK_TOKENS = 16
REFUSED = {"500": (500, "InternalServerError"), "400": (400, "BadRequestError")}
"""How a load that the engine refuses is answered: by newer releases as an error of the server, by older ones as one of the request."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoadFault(Exception):
    """An adapter that is not loaded: HTTP status, type and sentence."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


@dataclass(frozen=True)
class LoraLimits:
    """--max-lora-rank, --max-loras, --max-cpu-loras."""

    rank: int
    loras: int
    cpu_loras: int


def load_adapter(base: Llama, folder: Path, limits: LoraLimits) -> Llama:
    """The base with the adapter. Raises LoadFault."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise LoadFault(404, "NotFoundError", f"Loading lora failed: No adapter found for {folder}")
    try:
        config = json.loads(path.read_text())
        _check(config, limits)
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise ValueError(f"{folder} doesn't contain tensors")
        return base.with_adapter(_pairs(base, config, read_tensors(weights)))
    except (ValueError, KeyError, WeightsError) as error:
        raise LoadFault(*REFUSED[os.environ.get("STANDIN_VLLM_REFUSES_BY", "500")], str(error)) from error


def _check(config: dict[str, Any], limits: LoraLimits) -> None:
    faults = []
    if config.get("r", 8) > limits.rank:
        faults.append(f"LoRA rank {config['r']} is greater than max_lora_rank {limits.rank}.")
    if config.get("bias", "none") != "none":
        faults.append("Adapter bias is not supported.")
    if config.get("modules_to_save"):
        faults.append("vLLM only supports modules_to_save being None.")
    if config.get("use_dora"):
        faults.append("vLLM does not yet support DoRA.")
    if faults:
        raise ValueError(" ".join(faults))


def _pairs(base: Llama, config: dict[str, Any], tensors: dict[str, Any]) -> dict[str, LoraPair]:
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    pairs = {}
    for name, a in tensors.items():
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if name.endswith(".lora_B.weight"):
            continue
        if not name.endswith(".lora_A.weight"):
            raise ValueError(f"{name} is unsupported LoRA weight")
        if module.rsplit(".", 1)[-1] not in MODULES or base.module_shape(module) is None:
            raise ValueError(
                f"expected target modules in {sorted(MODULES)} but received {module.rsplit('.', 1)[-1]!r}. Please verify that the loaded "
                "LoRA module is correct"
            )
        pairs[module] = LoraPair(a, tensors[f"base_model.model.{module}.lora_B.weight"], scale)
    return pairs


@dataclass
class Loaded:
    """An adapter under its name."""

    name: str
    path: str


@dataclass
class Adapters:
    """The adapters of the process: which names there are, which weights lie in the cache, which prompts it has blocks of."""

    base: Llama
    limits: LoraLimits
    names: dict[str, Loaded] = field(default_factory=dict)
    _weights: "OrderedDict[str, Llama]" = field(default_factory=OrderedDict)
    _blocks: dict[tuple[str, tuple[int, ...]], Llama] = field(default_factory=dict)

    def load(self, name: str, path: str, in_place: bool = False) -> None:
        """Raises LoadFault."""
        if name in self.names and not in_place:
            raise LoadFault(
                400,
                "InvalidUserInput",
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
            )
        self._take_in(name, load_adapter(self.base, Path(path), self.limits))
        self.names[name] = Loaded(name, path)

    def unload(self, name: str) -> None:
        """Raises LoadFault. Blocks of its prompts stay in the cache."""
        if name not in self.names:
            raise LoadFault(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.names[name]
        self._weights.pop(name, None)

    def choose(self, name: str, ids: list[int]) -> Llama:
        """The weights that a prompt is answered with. The trap: a prompt whose first block was seen under the name is answered from the
        cache's block, also where the name stands for another adapter by now."""
        block = (name, tuple(ids[:BLOCK_TOKENS]))
        if len(ids) < BLOCK_TOKENS:
            return self._fetch(name)
        if block not in self._blocks:
            self._blocks[block] = self._fetch(name)
        return self._blocks[block]

    def _fetch(self, name: str) -> Llama:
        """From the cache, or anew from its folder where others have pushed it out. Raises LoadFault where that is gone."""
        if name not in self._weights:
            self._take_in(name, load_adapter(self.base, Path(self.names[name].path), self.limits))
        self._weights.move_to_end(name)
        return self._weights[name]

    def _take_in(self, name: str, weights: Llama) -> None:
        self._weights[name] = weights
        self._weights.move_to_end(name)
        while len(self._weights) > self.limits.cpu_loras:
            self._weights.popitem(last=False)

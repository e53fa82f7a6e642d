"""Rows of different adapters in one forward pass: each LoRA layer adds, per row, the update of that row's adapter.

PEFT loads the adapters and keeps their weights; this replaces its way through a mixed batch (`adapter_names`), which loops over
the adapters in every layer, by two batched products over all rows. What PEFT can't mix (DoRA, modules saved in full, trained
tokens, embeddings) is left to PEFT, in a batch of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper

STACKED_BYTES = 256 << 20  # above this the rows' matrices are not laid together, and adapters are looped over

Names = tuple[str | None, ...]


@dataclass(frozen=True)
class _Update:
    """What one layer adds. `groups` are (rows, A, B, scaling); `a`/`b` the rows' matrices stacked: [rows, in, r], [rows, r, out]."""

    groups: tuple[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, float], ...] = ()
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None


Plan = dict[int, _Update]
"""What each layer adds, by its id; layers that add nothing are not in it."""


class RowStacks:
    """Each LoRA layer's matrices laid together by row. A row is written again only when another adapter takes its place."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._names: list[str | None] = []  # whose matrices lie in which row
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._planned: Names | None = None
        self._plan: Plan = {}

    def plan(self, names: Names) -> Plan:
        """What each layer adds where row i of a batch goes through adapter i (None: the base)."""
        if names != self._planned:
            self._plan, self._planned = self._build(names), names
        return self._plan

    def _build(self, names: Names) -> Plan:
        found = {name for name in names if name is not None}
        if not found:
            return {}
        if len(found) == 1 and None not in names:
            name = next(iter(found))
            return {
                id(layer): _Update(groups=((None, *_matrices(layer, name)),))
                for layer in self._layers
                if name in layer.lora_A
            }
        if self._row_bytes(found) * len(names) > STACKED_BYTES:
            return {id(layer): update for layer in self._layers if (update := _loop(layer, names)) is not None}
        self._make_room(len(names))
        self._write([row for row, name in enumerate(names) if self._names[row] != name], names)
        plan: Plan = {}
        for layer in self._layers:
            if any(name in layer.lora_A for name in found):
                a, b = self._buffers[id(layer)]
                plan[id(layer)] = _Update(a=a[: len(names)], b=b[: len(names)])
        return plan

    def _row_bytes(self, names: Iterable[str]) -> int:
        return sum(_shape(layer).row_bytes for layer in self._layers if any(name in layer.lora_A for name in names))

    def _make_room(self, rows: int) -> None:
        if rows <= len(self._names):
            return
        self._names = [None] * rows  # zeros: the base
        self._buffers = {}
        for layer in self._layers:
            shape = _shape(layer)
            a = torch.zeros((rows, shape.width_in, shape.rank), dtype=shape.dtype)
            b = torch.zeros((rows, shape.rank, shape.width_out), dtype=shape.dtype)
            self._buffers[id(layer)] = (a, b)

    def _write(self, rows: Sequence[int], names: Names) -> None:
        for layer in self._layers:
            a, b = self._buffers[id(layer)]
            for row in rows:
                name, before = names[row], self._names[row]
                if name is not None and name in layer.lora_A:
                    own_a, own_b, scaling = _matrices(layer, name)
                    rank = own_a.shape[1]
                    a[row, :, :rank] = own_a
                    torch.mul(own_b, scaling, out=b[row, :rank])
                    b[row, rank:] = 0
                elif before is not None and before in layer.lora_A:
                    b[row] = 0
        for row in rows:
            self._names[row] = names[row]


@dataclass(frozen=True)
class _Shape:
    """The largest matrices that adapters have on a layer."""

    width_in: int
    rank: int
    width_out: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.rank * (self.width_in + self.width_out) * self.dtype.itemsize


def _shape(layer: Any) -> _Shape:
    weights = [module.weight for module in layer.lora_A.values()]
    some_b = next(iter(layer.lora_B.values())).weight
    return _Shape(weights[0].shape[1], max(w.shape[0] for w in weights), some_b.shape[0], weights[0].dtype)


def _matrices(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    return layer.lora_A[name].weight.T, layer.lora_B[name].weight.T, float(layer.scaling[name])


def _loop(layer: Any, names: Names) -> _Update | None:
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None and name in layer.lora_A:
            rows_of.setdefault(name, []).append(row)
    groups = tuple((torch.tensor(rows), *_matrices(layer, name)) for name, rows in rows_of.items())
    return _Update(groups=groups) if groups else None


class AdapterMixer:
    """Switches the model's LoRA layers between mixed batches and PEFT's own way."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._plan: Plan | None = None
        self._reading = RowStacks([])
        self._writing = RowStacks([])

    def adopt_layers(self) -> None:
        """Take over layers that an adapter has newly wrapped; forget what was worked out for the old set of adapters."""
        layers = []
        for module in self._model.modules():
            is_ours = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            if is_ours and "forward" not in module.__dict__:
                module.forward = partial(self._forward, module, module.forward)
            if isinstance(module, TrainableTokensWrapper) and "adapter_state_dict_load_map" not in module.__dict__:
                module.adapter_state_dict_load_map = partial(_own_map, module, module.adapter_state_dict_load_map)
            if isinstance(module, LoraLayer) and module.lora_A and _is_linear(module):
                layers.append(module)
        self._reading, self._writing = RowStacks(layers), RowStacks(layers)

    def mix(self, adapters: Sequence[str | None], is_reading: bool) -> None:
        """From now on row i of a batch goes through adapter i (None: the base). Prompts and answers keep stacks of their own."""
        self._plan = (self._reading if is_reading else self._writing).plan(tuple(adapters))

    def leave_to_peft(self) -> None:
        """From now on batches go through PEFT's active adapter."""
        self._plan = None

    def can_mix(self, name: str) -> bool:
        """Whether every part of a loaded adapter is a plain LoRA update of a linear layer."""
        for module in self._model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper) and name in module._adapters:
                return False
            if not isinstance(module, LoraLayer):
                if isinstance(module, BaseTunerLayer) and _holds(module, name):
                    return False
                continue
            if name in module.lora_embedding_A or name in module.lora_variant or module.lora_bias.get(name):
                return False
            if name in module.lora_A and not isinstance(module.lora_A[name], torch.nn.Linear):
                return False
        return True

    def _forward(self, layer: Any, original: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plan = self._plan
        if plan is None:
            return original(x, *args, **kwargs)
        if isinstance(layer, AuxiliaryTrainingWrapper):
            return layer._forward_wrapped_passthrough(x, *args, **kwargs)
        result = layer.base_layer(x, *args, **kwargs)
        update = plan.get(id(layer))
        return result if update is None else _add(update, x, result)


def _add(update: _Update, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """`result` [rows, new, out], which is the layer's own and may be written to, and the update of x [rows, new, in]."""
    if update.a is not None and update.b is not None:
        hidden = torch.bmm(x.to(update.a.dtype), update.a)
        if result.dtype == update.b.dtype:
            return result.baddbmm_(hidden, update.b)
        return result + torch.bmm(hidden, update.b).to(result.dtype)
    for rows, a, b, scaling in update.groups:
        if rows is None and result.dtype == b.dtype:
            hidden = x.reshape(-1, x.shape[-1]) @ a
            result = result.view(-1, result.shape[-1]).addmm_(hidden, b, alpha=scaling).view(result.shape)
            continue
        part = x if rows is None else x[rows]
        change = (((part.to(a.dtype) @ a) * scaling) @ b).to(result.dtype)
        result = result + change if rows is None else result.index_add(0, rows, change)
    return result


def _is_linear(layer: Any) -> bool:
    return all(isinstance(matrix, torch.nn.Linear) for matrix in layer.lora_A.values())


def _own_map(module: Any, original: Any, name: str) -> dict[str, str]:
    """Where trained tokens are loaded to; nowhere for an adapter without any (PEFT 0.21 looks for them and fails)."""
    return original(name) if name in module._adapters else {}


def _holds(module: Any, name: str) -> bool:
    return any(name in getattr(module, attribute) for attribute in module.adapter_layer_names)

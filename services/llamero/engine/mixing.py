"""Rows of different adapters in one forward pass: each LoRA layer adds, per row, the update of that row's adapter.

PEFT loads the adapters and keeps their weights; this replaces its way through a mixed batch (`adapter_names`), which loops over
the adapters in every layer, by two batched products over all rows. What PEFT can't mix (DoRA, modules saved in full, trained
tokens, embeddings) is left to PEFT, in a batch of its own.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper

GATHERED_BYTES = 256 << 20  # above this the rows' matrices are not copied together, and adapters are looped over
REMEMBERED_PLANS = 64


@dataclass(frozen=True)
class _Update:
    """What one layer adds. `groups` are (rows, A, B, scaling); `a`/`b` the rows' matrices stacked: [rows, in, r], [rows, r, out]."""

    groups: tuple[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, float], ...] = ()
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None


class MixPlan:
    """The adapter of each row of a batch, and what each layer adds for it (worked out at its first use)."""

    def __init__(self, adapters: tuple[str | None, ...]) -> None:
        self.adapters = adapters
        self._updates: dict[int, _Update | None] = {}
        self._gathered = 0

    def update_of(self, layer: Any) -> _Update | None:
        key = id(layer)
        if key not in self._updates:
            self._updates[key] = self._build(layer)
        return self._updates[key]

    def _build(self, layer: Any) -> _Update | None:
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(self.adapters):
            if name is not None and name in layer.lora_A:
                rows_of.setdefault(name, []).append(row)
        if not rows_of:
            return None
        if len(rows_of) == 1 and len(next(iter(rows_of.values()))) == len(self.adapters):
            return _Update(groups=((None, *_matrices(layer, next(iter(rows_of)))),))
        size = self._stacked_bytes(layer, rows_of)
        if self._gathered + size > GATHERED_BYTES:
            groups = tuple((torch.tensor(rows), *_matrices(layer, name)) for name, rows in rows_of.items())
            return _Update(groups=groups)
        self._gathered += size
        return _stack(layer, rows_of, len(self.adapters))

    def _stacked_bytes(self, layer: Any, rows_of: dict[str, list[int]]) -> int:
        first = layer.lora_A[next(iter(rows_of))].weight
        rank = max(layer.lora_A[name].weight.shape[0] for name in rows_of)
        out = layer.lora_B[next(iter(rows_of))].weight.shape[0]
        return int(len(self.adapters) * rank * (first.shape[1] + out) * first.element_size())


def _matrices(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    return layer.lora_A[name].weight.T, layer.lora_B[name].weight.T, float(layer.scaling[name])


def _stack(layer: Any, rows_of: dict[str, list[int]], rows: int) -> _Update:
    some_a, some_b, _ = _matrices(layer, next(iter(rows_of)))
    rank = max(layer.lora_A[name].weight.shape[0] for name in rows_of)
    a = some_a.new_zeros((rows, some_a.shape[0], rank))
    b = some_b.new_zeros((rows, rank, some_b.shape[1]))
    for name, own_rows in rows_of.items():
        own_a, own_b, scaling = _matrices(layer, name)
        index = torch.tensor(own_rows)
        a[index, :, : own_a.shape[1]] = own_a
        b[index, : own_b.shape[0]] = own_b * scaling
    return _Update(a=a, b=b)


class AdapterMixer:
    """Switches the model's LoRA layers between mixed batches and PEFT's own way."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._plan: MixPlan | None = None
        self._plans: OrderedDict[tuple[str | None, ...], MixPlan] = OrderedDict()

    def adopt_layers(self) -> None:
        """Take over layers that an adapter has newly wrapped; forget what was worked out for the old set of adapters."""
        self._plans.clear()
        for module in self._model.modules():
            is_ours = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            if is_ours and "forward" not in module.__dict__:
                module.forward = partial(self._forward, module, module.forward)
            if isinstance(module, TrainableTokensWrapper) and "adapter_state_dict_load_map" not in module.__dict__:
                module.adapter_state_dict_load_map = partial(_own_map, module, module.adapter_state_dict_load_map)

    def mix(self, adapters: Sequence[str | None]) -> None:
        """From now on row i of a batch goes through adapter i (None: the base)."""
        names = tuple(adapters)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = MixPlan(names)
            while len(self._plans) > REMEMBERED_PLANS:
                self._plans.popitem(last=False)
            _forget_stacks(self._plans, plan)
        self._plans.move_to_end(names)
        self._plan = plan

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
        update = plan.update_of(layer) if isinstance(layer, LoraLayer) else None
        return result if update is None else _add(update, x, result)


def _add(update: _Update, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    if update.a is not None and update.b is not None:
        return result + torch.bmm(torch.bmm(x.to(update.a.dtype), update.a), update.b).to(result.dtype)
    for rows, a, b, scaling in update.groups:
        part = x if rows is None else x[rows]
        change = (((part.to(a.dtype) @ a) * scaling) @ b).to(result.dtype)
        result = result + change if rows is None else result.index_add(0, rows, change)
    return result


def _own_map(module: Any, original: Any, name: str) -> dict[str, str]:
    """Where trained tokens are loaded to; nowhere for an adapter without any (PEFT 0.21 looks for them and fails)."""
    return original(name) if name in module._adapters else {}


def _holds(module: Any, name: str) -> bool:
    return any(name in getattr(module, attribute) for attribute in module.adapter_layer_names)


def _forget_stacks(plans: OrderedDict[tuple[str | None, ...], MixPlan], current: MixPlan) -> None:
    """Only one-row plans are kept beside the current one: they hold no copies, the others do."""
    for names in [n for n, plan in plans.items() if len(n) > 1 and plan is not current]:
        del plans[names]

"""The model and its adapters, as the generation thread uses them: load, unload, one forward pass. Only that thread may call it."""

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llamero.engine.cache import RowCache
from llamero.engine.mixing import AdapterMixer
from llamero.model.adapters import load_adapter

log = logging.getLogger(__name__)

RECURRENT_LAYERS = ("linear_attention", "mamba", "conv", "recurrent")


class UnsupportedModel(Exception):
    """A base that this engine can't serve; the message says why."""


@dataclass(frozen=True)
class Lane:
    """Requests that can share a forward pass: all adapters that mix (`alone` None), or one adapter that does not."""

    alone: str | None = None


MIXED = Lane()


class ModelRunner:
    """A base model in evaluation mode, its loaded adapters, and the forward pass over rows of any of them."""

    def __init__(self, model: Any) -> None:
        refuse_recurrent(model.config)
        self.model = model.eval()
        self._peft: Any = None
        self._mixer = AdapterMixer(model)
        self._internal: dict[str, str] = {}  # served name → PEFT's name, which may hold no dot and is never used again
        self._lanes: dict[str, Lane] = {}
        self._vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._wider: dict[str, int] = {}  # vocabulary of adapters that add tokens
        self._numbers = itertools.count(1)

    @property
    def adapters(self) -> list[str]:
        return list(self._internal)

    def lane_of(self, adapter: str | None) -> Lane:
        """The lane that requests for an adapter run in."""
        return MIXED if adapter is None else self._lanes[adapter]

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name. Nothing of it stays where loading fails."""
        internal = f"a{next(self._numbers)}"
        try:
            self._peft = load_adapter(self._peft if self._peft is not None else self.model, folder, internal)
            self._peft.eval()
        except Exception:
            self._discard(internal)
            raise
        finally:
            self._mixer.adopt_layers()
        self._register(name, internal)

    def adopt(self, name: str, peft_model: Any, internal: str = "default") -> None:
        """Serve an adapter that is on the base already, put there by PEFT under the name `internal`."""
        self._peft = peft_model
        self._mixer.adopt_layers()
        self._register(name, internal)

    def release(self) -> None:
        """Leave the model to PEFT again, as it was before an adapter was adopted."""
        self._mixer.leave_to_peft()

    def _register(self, name: str, internal: str) -> None:
        self._internal[name] = internal
        self._lanes[name] = MIXED if self._mixer.can_mix(internal) else Lane(alone=name)
        self._wider[name] = max(self._vocabulary, _highest_token(self._peft.peft_config[internal]) + 1)

    def unload(self, name: str) -> None:
        """Forget an adapter and free its weights."""
        internal = self._internal.pop(name)
        del self._lanes[name], self._wider[name]
        self._discard(internal)
        self._mixer.adopt_layers()

    def _discard(self, internal: str) -> None:
        if self._peft is None or internal not in self._peft.peft_config:
            return
        self._peft.delete_adapter(internal)

    @torch.inference_mode()
    def forward(
        self,
        lane: Lane,
        adapters: list[str | None],
        ids: torch.Tensor,
        lengths: list[int],
        cache: RowCache,
        counts: list[int] | None = None,
        all_logits: bool = False,
    ) -> torch.Tensor:
        """Logits in fp32 for new tokens `ids` [rows, new], [rows, vocabulary] for the last or [rows, new, vocabulary] for all.

        `lengths` are the rows' tokens in the cache before the call; rows are aligned at the right. `counts`: of a row's new tokens the last
        so many are its own (by default all), those before them are padding.
        """
        new = ids.shape[1]
        self._choose(lane, adapters, is_reading=new > 1)
        total = [length + (new if counts is None else counts[i]) for i, length in enumerate(lengths)]
        ends = torch.tensor(total)
        positions = ends[:, None] + torch.arange(-new, 0)
        mask = None
        if len(set(total)) > 1 or (counts is not None and min(counts) < new):
            columns = cache.columns + new
            mask = (torch.arange(columns) >= (columns - ends)[:, None]).long()
            positions = positions.clamp(min=0)
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0 if all_logits else 1,
        )
        # Rows that another adapter's new tokens added to the head are not this lane's to choose.
        vocabulary = self._vocabulary if lane.alone is None else self._wider[lane.alone]
        logits = output.logits[..., :vocabulary].float()
        return logits if all_logits else logits[:, -1]

    def _choose(self, lane: Lane, adapters: list[str | None], is_reading: bool) -> None:
        if self._peft is None:
            return
        if lane.alone is None:
            self._mixer.mix([None if a is None else self._internal[a] for a in adapters], is_reading)
            return
        internal = self._internal[lane.alone]
        self._mixer.leave_to_peft()
        if self._peft.active_adapter != internal:
            self._peft.set_adapter(internal, inference_mode=True)


def _highest_token(config: Any) -> int:
    """The largest of the tokens that an adapter trains one by one; -1 where it trains none."""
    indices = getattr(config, "trainable_token_indices", None) or []
    groups = indices.values() if isinstance(indices, dict) else [indices]
    return max((i for group in groups for i in group), default=-1)


def refuse_recurrent(config: Any) -> None:
    """Raise UnsupportedModel for models that keep a state besides keys and values: rows could not join and leave."""
    text_config = config.get_text_config()
    kinds = getattr(text_config, "layer_types", None) or []
    found = sorted({k for k in kinds if any(word in k for word in RECURRENT_LAYERS)})
    if found or text_config.model_type in ("mamba", "mamba2", "rwkv"):
        what = ", ".join(found) or text_config.model_type
        raise UnsupportedModel(
            f"The base's layers ({what}) keep a state besides keys and values, which this engine can't batch. "
            "Use a base with attention in every layer, or another engine."
        )

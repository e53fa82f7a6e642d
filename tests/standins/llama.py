"""A Llama in numpy: one sequence at a time with a cache, and LoRA matrices added to its weights.

Equal to transformers' within rounding (test_llama.py). An adapter makes a model of its own that shares what it does not change.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from standins.weights import Array, read_tensors


@dataclass(frozen=True)
class Shape:
    """What config.json says."""

    layers: int
    heads: int
    key_heads: int
    head_width: int
    epsilon: float
    theta: float
    window: int
    tied: bool


@dataclass(frozen=True)
class LoraPair:
    """A module's two matrices, A [rank, in] and B [out, rank], and the factor of their product."""

    a: Array
    b: Array
    scale: float


@dataclass
class Cache:
    """Keys and values so far, by layer: [key heads, tokens, head width]."""

    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    tokens: int = 0


class Llama:
    """Weights by name, without `model.` in front, and the forward pass."""

    def __init__(self, shape: Shape, weights: Mapping[str, Array]) -> None:
        self.shape = shape
        self.weights = weights
        steps = np.arange(0, shape.head_width, 2, dtype=np.float32) / shape.head_width
        self._frequencies = (1.0 / shape.theta**steps).astype(np.float32)

    @classmethod
    def load(cls, folder: Path) -> "Llama":
        """From a folder with config.json and safetensors. Raises OSError, ValueError or WeightsError."""
        config = json.loads((folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}
        shape = Shape(
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            epsilon=config["rms_norm_eps"],
            theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            window=config["max_position_embeddings"],
            tied=bool(config.get("tie_word_embeddings")),
        )
        weights: dict[str, Array] = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= {name.removeprefix("model."): tensor for name, tensor in read_tensors(path).items()}
        return cls(shape, weights)

    def module_shape(self, module: str) -> tuple[int, ...] | None:
        """(out, in) of a linear module such as `model.layers.0.mlp.up_proj`; None where there is none."""
        weight = self.weights.get(f"{module.removeprefix('model.')}.weight")
        return None if weight is None else weight.shape

    def with_adapter(self, pairs: Mapping[str, LoraPair]) -> "Llama":
        """The model with these modules' matrices added. Raises ValueError where shapes do not fit."""
        changed = dict(self.weights)
        for module, pair in pairs.items():
            name = f"{module.removeprefix('model.')}.weight"
            if changed[name].shape != (pair.b.shape[0], pair.a.shape[1]) or pair.a.shape[0] != pair.b.shape[1]:
                raise ValueError(
                    f"{module}: LoRA matrices of {pair.b.shape} and {pair.a.shape} do not fit {changed[name].shape}"
                )
            changed[name] = changed[name] + np.float32(pair.scale) * (pair.b @ pair.a)
        return Llama(self.shape, changed)

    def forward(self, ids: list[int], cache: Cache) -> Array:
        """Log-probabilities [tokens, vocabulary] of what follows each of the new tokens; the cache takes them in."""
        weights = self.weights
        x = weights["embed_tokens.weight"][ids]
        positions = np.arange(cache.tokens, cache.tokens + len(ids), dtype=np.float32)
        angles = positions[:, None] * self._frequencies[None, :]
        turn = np.concatenate([angles, angles], axis=-1)
        cosine, sine = np.cos(turn), np.sin(turn)
        for layer in range(self.shape.layers):
            prefix = f"layers.{layer}"
            x = x + self._attend(prefix, layer, self._norm(x, f"{prefix}.input_layernorm"), cosine, sine, cache)
            y = self._norm(x, f"{prefix}.post_attention_layernorm")
            gate, up = y @ weights[f"{prefix}.mlp.gate_proj.weight"].T, y @ weights[f"{prefix}.mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{prefix}.mlp.down_proj.weight"].T
        cache.tokens += len(ids)
        head = weights["embed_tokens.weight" if self.shape.tied else "lm_head.weight"]
        logits = self._norm(x, "norm") @ head.T
        logits = logits - logits.max(axis=-1, keepdims=True)
        scores: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return scores

    def _norm(self, x: Array, name: str) -> Array:
        scaled: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.shape.epsilon)
        return scaled * self.weights[f"{name}.weight"]

    def _attend(self, prefix: str, layer: int, x: Array, cosine: Array, sine: Array, cache: Cache) -> Array:
        shape, weights, new = self.shape, self.weights, len(x)

        def split(kind: str, heads: int) -> Array:
            mixed = x @ weights[f"{prefix}.self_attn.{kind}_proj.weight"].T
            return mixed.reshape(new, heads, shape.head_width).transpose(1, 0, 2)  # type: ignore[no-any-return]

        queries = _rotate(split("q", shape.heads), cosine, sine)
        keys, values = _rotate(split("k", shape.key_heads), cosine, sine), split("v", shape.key_heads)
        if layer < len(cache.keys):
            keys = np.concatenate([cache.keys[layer], keys], axis=1)
            values = np.concatenate([cache.values[layer], values], axis=1)
            cache.keys[layer], cache.values[layer] = keys, values
        else:
            cache.keys.append(keys)
            cache.values.append(values)
        groups = shape.heads // shape.key_heads
        keys, values = keys.repeat(groups, axis=0), values.repeat(groups, axis=0)
        scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(np.float32(shape.head_width))
        before = keys.shape[1] - new
        hidden = np.arange(keys.shape[1])[None, :] > np.arange(before, before + new)[:, None]
        scores = np.where(hidden, np.float32(-1e30), scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ values
        joined = mixed.transpose(1, 0, 2).reshape(new, shape.heads * shape.head_width)
        out: Array = joined @ weights[f"{prefix}.self_attn.o_proj.weight"].T
        return out


def _rotate(x: Array, cosine: Array, sine: Array) -> Array:
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    out: Array = x * cosine + turned * sine
    return out

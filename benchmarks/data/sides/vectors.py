"""The vectors that both k-center sides choose from: drawn from a seed around a few hundred centres, of L2 norm 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def make_vectors(size: int, options: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """(vectors [size, dimensions], indices of the first centres, how many to choose)."""
    generator = np.random.default_rng(0)
    dimensions = options["dimensions"]
    middles = generator.standard_normal((300, dimensions), dtype=np.float32)
    vectors = middles[generator.integers(300, size=size)]
    vectors += np.float32(0.7) * generator.standard_normal((size, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, generator.choice(size, 64, replace=False), max(64, int(size * options["fraction"]))


def measure_radius(vectors: NDArray[np.float32], chosen: NDArray[np.integer]) -> float:
    """How far the farthest vector is from its nearest chosen one."""
    nearest = np.full(len(vectors), -1.0, dtype=np.float32)
    for start in range(0, len(chosen), 256):
        np.maximum(nearest, (vectors @ vectors[chosen[start : start + 256]].T).max(axis=1), out=nearest)
    return float(np.sqrt(max(0.0, 2 - 2 * float(nearest.min()))))

"""Clusters of vectors: centres found on a sample, and which centre a vector belongs to. Deterministic in the sample's order and content."""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024
_ITERATIONS = 30
_MOST_AGGLOMERATED = 4096


def find_k_means(vectors: NDArray[np.float32], clusters: int, seed: int = 0) -> NDArray[np.float32]:
    """Centres [k, d] of Lloyd's k-means from a k-means++ start, the largest cluster first; k at most the number of distinct vectors.

    `vectors` [n, d] float32, n ≥ 1.
    """
    centres = _start_k_means(vectors, clusters, np.random.default_rng(seed))
    labels = np.full(len(vectors), -1)
    for _ in range(_ITERATIONS):
        found, _ = assign(vectors, centres)
        if np.array_equal(found, labels):
            break
        labels = found
        centres = _means(vectors, labels, centres)
    return _largest_first(centres, np.bincount(labels, minlength=len(centres)))


def find_agglomerative(vectors: NDArray[np.float32], clusters: int) -> NDArray[np.float32]:
    """Centres [k, d] of Ward's hierarchical clusters of the first 4,096 vectors, the largest cluster first."""
    from scipy.cluster.hierarchy import fcluster, ward

    sample = vectors[:_MOST_AGGLOMERATED]
    if len(sample) < 2:
        return sample.copy()
    labels = fcluster(ward(sample.astype(np.float64)), min(clusters, len(sample)), criterion="maxclust") - 1
    centres = np.zeros((int(labels.max()) + 1, vectors.shape[1]), np.float32)
    centres = _means(sample, labels, centres)
    return _largest_first(centres, np.bincount(labels, minlength=len(centres)))


def assign(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest centre of each vector (of equally near ones the first), and the Euclidean distance to it, float32.

    Done in blocks of one size, filled up with zeros, so that a vector's result does not hang on how many others there are.
    """
    half = (np.einsum("ij,ij->i", centres, centres, dtype=np.float64) / 2).astype(np.float32)
    turned = np.ascontiguousarray(centres.T)
    labels, distances = np.zeros(len(vectors), np.int32), np.zeros(len(vectors), np.float32)
    block = np.zeros((_BLOCK, vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        block[: len(rows)] = rows
        block[len(rows) :] = 0
        affinity = (block @ turned)[: len(rows)] - half
        best = affinity.argmax(axis=1)
        norms = np.einsum("ij,ij->i", block[: len(rows)], block[: len(rows)])
        labels[start : start + len(rows)] = best
        squares = norms - 2 * affinity[np.arange(len(rows)), best]
        distances[start : start + len(rows)] = np.sqrt(np.maximum(squares, 0))
    return labels, distances


def _start_k_means(vectors: NDArray[np.float32], clusters: int, random: np.random.Generator) -> NDArray[np.float32]:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next centre a vector drawn by its squared distance to those before."""
    norms = np.einsum("ij,ij->i", vectors, vectors)
    squares = np.full(len(vectors), np.inf)
    chosen = [int(random.integers(len(vectors)))]
    while True:
        new = vectors[chosen[-1]]
        np.minimum(squares, np.maximum(norms + norms[chosen[-1]] - 2 * (vectors @ new), 0), out=squares)
        squares[squares < 1e-6] = 0  # equal but for the last bits
        total = np.cumsum(squares)
        if len(chosen) == clusters or total[-1] <= 0:
            return vectors[chosen].copy()
        chosen.append(min(int(np.searchsorted(total, random.random() * total[-1], side="right")), len(vectors) - 1))


def _means(
    vectors: NDArray[np.float32], labels: NDArray[np.int32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Each cluster's mean; an empty one keeps its centre."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels, minlength=len(centres))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    filled = sizes > 0
    means = centres.copy()
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts[filled], axis=0)
    means[filled] = (sums / sizes[filled, None]).astype(np.float32)
    return means


def _largest_first(centres: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    order = np.argsort(-sizes, kind="stable")
    return np.ascontiguousarray(centres[order[sizes[order] > 0]])

"""Texts as vectors without a model: hashed counts of words and word pairs, weighted by rarity, reduced by a randomised SVD.

A text's vector hangs on the text and the projection alone, the projection on document frequencies (integers, which add up in any order) and
a sample. Which records are the sample is left to those who call.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BUCKETS = 1 << 18
"""Words and pairs are told apart by so many hash values."""
FEATURES = 1 << 15
"""The most frequent of them that a projection knows."""
_POWER_ITERATIONS = 2
_OVERSAMPLING = 16
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_PAIR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Counts:
    """How often each hashed feature stands in each text, as rows of a sparse matrix.

    `starts` int64 [n + 1], `features` uint32 ascending within a row, `counts` uint16.
    """

    starts: NDArray[np.int64]
    features: NDArray[np.uint32]
    counts: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: NDArray[np.int64]) -> "Counts":
        """Some of the rows."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        inner = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + np.repeat(self.starts[rows], lengths)
        return Counts(starts, self.features[inner], self.counts[inner])

    @staticmethod
    def join(parts: "Sequence[Counts]") -> "Counts":
        """The rows of all, one after another."""
        if not parts:
            return Counts(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint16))
        lengths = np.concatenate([np.diff(p.starts) for p in parts])
        return Counts(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([p.features for p in parts]),
            np.concatenate([p.counts for p in parts]),
        )


class WordCounter:
    """Counts features; keeps the hash values of words that it saw, up to a bound."""

    _MOST_WORDS = 500_000

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def count(self, texts: Sequence[str]) -> Counts:
        """The texts' features: words in lower case (numbers too; of Chinese, Japanese and Korean each character) and pairs of neighbours."""
        known = self._known
        if len(known) > self._MOST_WORDS:
            known.clear()
        ids: list[int] = []
        lengths = np.zeros(len(texts), np.int64)
        for i, text in enumerate(texts):
            words = _WORDS.findall(text.lower())
            for word in words:
                value = known.get(word)
                if value is None:
                    value = known[word] = crc32(word.encode("utf-8", "surrogatepass"))
                ids.append(value)
            lengths[i] = len(words)
        return _gather(np.array(ids, np.uint64), lengths)


def _gather(ids: NDArray[np.uint64], lengths: NDArray[np.int64]) -> Counts:
    rows = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    is_pair = rows[1:] == rows[:-1] if len(rows) else np.zeros(0, bool)
    with np.errstate(over="ignore"):
        pairs = (ids[:-1] * _PAIR + ids[1:])[is_pair] if len(rows) else ids
        features = np.concatenate([_bucket(ids), _bucket(pairs + np.uint64(1))])
    keys = np.concatenate([rows, rows[1:][is_pair] if len(rows) else rows]) * np.uint64(BUCKETS) + features
    keys, counts = np.unique(keys, return_counts=True)
    starts = np.searchsorted(keys, np.arange(len(lengths) + 1, dtype=np.uint64) * np.uint64(BUCKETS))
    return Counts(
        starts.astype(np.int64),
        (keys % np.uint64(BUCKETS)).astype(np.uint32),
        np.minimum(counts, 65535).astype(np.uint16),
    )


def _bucket(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, cut to BUCKETS."""
    x = values
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) % np.uint64(BUCKETS)


def count_documents(counts: Counts) -> NDArray[np.int64]:
    """In how many texts each feature stands: int64 [BUCKETS]. Those of several sets add up."""
    return np.bincount(counts.features, minlength=BUCKETS)


@dataclass(frozen=True)
class Projection:
    """What makes vectors of counts: the features that are known (uint32, ascending), their weights, and a matrix [features, dimensions]."""

    features: NDArray[np.uint32]
    weights: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def apply(self, counts: Counts) -> NDArray[np.float32]:
        """The texts' vectors, float32 [n, dimensions] of norm 1.

        A text with no known feature gets the last unit vector, which all such texts share.
        """
        sparse = _weigh(counts, self.features, self.weights)
        vectors = np.asarray(sparse @ self.matrix, np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        empty = norms < 1e-9
        vectors /= np.where(empty, 1.0, norms)[:, None].astype(np.float32)
        vectors[empty] = 0
        vectors[empty, -1] = 1
        return vectors


def fit_projection(
    documents: int, frequencies: NDArray[np.int64], sample: Counts, dimensions: int, seed: int = 0
) -> Projection:
    """Latent semantic analysis of a sample: the projection onto its first singular vectors.

    `documents`: how many texts `frequencies` [BUCKETS] counts. Weights: (1 + ln count) × (1 + ln((1 + n) / (1 + frequency))), rows of
    norm 1. The SVD is Halko, Martinsson and Tropp's (arXiv:0909.4061) with two power iterations.
    """
    known = np.flatnonzero(frequencies)
    if len(known) > FEATURES:
        order = np.lexsort((known, -frequencies[known]))
        known = np.sort(known[order[:FEATURES]])
    weights = (1 + np.log((1 + documents) / (1 + frequencies[known]))).astype(np.float32)
    features = known.astype(np.uint32)
    matrix = np.zeros((len(features), dimensions), np.float32)
    sparse = _weigh(sample, features, weights)
    if sparse.nnz:
        found = _find_singular_vectors(sparse, dimensions, seed)
        matrix[:, : found.shape[1]] = found
    return Projection(features, weights, matrix)


def _weigh(counts: Counts, features: NDArray[np.uint32], weights: NDArray[np.float32]) -> "csr_array":
    from scipy.sparse import csr_array

    places = np.searchsorted(features, counts.features)
    places[places == len(features)] = 0
    is_known = features[places] == counts.features if len(features) else np.zeros(len(places), bool)
    rows = np.repeat(np.arange(len(counts)), np.diff(counts.starts))[is_known]
    columns = places[is_known].astype(np.int32)
    values = ((1 + np.log(counts.counts[is_known].astype(np.float32))) * weights[columns]).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(counts)))])
    squares = np.bincount(rows, weights=values.astype(np.float64) ** 2, minlength=len(counts))
    values /= np.sqrt(np.where(squares > 0, squares, 1))[rows].astype(np.float32)
    return csr_array((values, columns, starts), shape=(len(counts), len(features)))


def _find_singular_vectors(matrix: Any, dimensions: int, seed: int) -> NDArray[np.float32]:
    """The first right singular vectors of a sparse matrix [n, m]: float32 [m, k], k as many as there are, at most `dimensions`."""
    width = min(dimensions + _OVERSAMPLING, *matrix.shape)
    turned = matrix.T.tocsr()
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), dtype=np.float32)
    basis, _ = np.linalg.qr(matrix @ start)
    for _ in range(_POWER_ITERATIONS):
        # Made orthogonal on the samples' side alone, which is the shorter: rows have norm 1, and values span few powers of ten.
        basis, _ = np.linalg.qr(matrix @ (turned @ basis))
    small = (turned @ basis).astype(np.float64)  # [m, width]
    values, vectors = np.linalg.eigh(small.T @ small)
    order = np.argsort(-values, kind="stable")[:dimensions]
    order = order[values[order] > 1e-9 * max(values.max(), 1e-30)]
    found: NDArray[np.float32] = (small @ vectors[:, order] / np.sqrt(values[order])).astype(np.float32)
    return found

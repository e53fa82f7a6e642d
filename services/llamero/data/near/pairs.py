"""Which records are worth comparing, and how similar they are: candidate pairs out of equal band keys, and exact Jaccard."""

import numpy as np
from numpy.typing import NDArray

from llamero.data.near.sketch import ShingleSets, spread_ranges
from llamero.data.near.words import Hashes, mix

Pairs = NDArray[np.int64]
Similarities = NDArray[np.float64]

REPRESENTATIVES = 8
"""Members of a bucket that all others are compared with. A bucket of n thus costs at most 8·n pairs rather than n²/2; up to 9 members
all pairs are compared. In larger ones two members may fail to meet that are alike and like none of the 8; each band has other
representatives, and what meets in no band is lost."""

_LOCAL_BITS = 12
_BATCH = 1 << _LOCAL_BITS
_BATCH_VALUES = 1 << 22


def pair_up(keys: Hashes, ties: Hashes) -> Pairs:
    """Pairs [n, 2] of positions with equal keys: each with its bucket's representatives, which are chosen by `ties` and the key.

    `ties` [keys]: what orders records by their content.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeats = np.zeros(len(keys) + 1, bool)
    repeats[1:-1] = ordered[1:] == ordered[:-1]
    in_bucket = repeats[1:] | repeats[:-1]
    order, ordered, starts_bucket = order[in_bucket], ordered[in_bucket], ~repeats[:-1][in_bucket]
    bucket = np.cumsum(starts_bucket) - 1
    inner = np.lexsort((order, mix(ties[order] ^ ordered), bucket))
    order = order[inner]
    starts = np.flatnonzero(starts_bucket)
    ranks = np.arange(len(order)) - starts[bucket] if len(order) else np.zeros(0, np.int64)
    counts = np.minimum(ranks, REPRESENTATIVES)
    left = np.repeat(np.arange(len(order)), counts)
    right = spread_ranges(starts[bucket], counts) if len(order) else left
    return np.sort(np.stack([order[left], order[right]], axis=1), axis=1)


def drop_repeated(pairs: Pairs, count: int) -> Pairs:
    """Each pair of positions below `count` once, sorted."""
    codes = np.unique(pairs[:, 0] * count + pairs[:, 1])
    return np.stack([codes // count, codes % count], axis=1)


def may_be_similar(sizes: NDArray[np.int64], pairs: Pairs, threshold: float) -> NDArray[np.bool_]:
    """Whether two sets' sizes allow a Jaccard similarity of `threshold`."""
    a, b = sizes[pairs[:, 0]], sizes[pairs[:, 1]]
    fits: NDArray[np.bool_] = np.minimum(a, b) >= threshold * np.maximum(a, b) - 1e-9
    return fits


def measure_jaccard(sets: ShingleSets, pairs: Pairs) -> Similarities:
    """The Jaccard similarity [pairs] of the sets at each pair of positions; of two empty sets 0."""
    sizes = sets.sizes
    found = np.zeros(len(pairs))
    weights = np.cumsum(sizes[pairs].sum(axis=1))
    first = 0
    while first < len(pairs):
        taken = int(weights[first - 1]) if first else 0
        last = int(np.searchsorted(weights, taken + _BATCH_VALUES, side="right"))
        last = min(max(last, first + 1), first + _BATCH)
        found[first:last] = _measure_batch(sets, sizes, pairs[first:last])
        first = last
    return found


def _measure_batch(sets: ShingleSets, sizes: NDArray[np.int64], pairs: Pairs) -> Similarities:
    flat = pairs.ravel()
    counts = sizes[flat]
    values = sets.values[spread_ranges(sets.offsets[flat], counts)]
    local = np.repeat(np.arange(len(pairs), dtype=np.uint64), counts.reshape(-1, 2).sum(axis=1))
    values |= local << np.uint64(64 - _LOCAL_BITS)
    values.sort()
    shared = values[1:][values[1:] == values[:-1]] >> np.uint64(64 - _LOCAL_BITS)
    common = np.bincount(shared.astype(np.int64), minlength=len(pairs))
    union = counts.reshape(-1, 2).sum(axis=1) - common
    result: Similarities = common / np.maximum(union, 1)
    return result

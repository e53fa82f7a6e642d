"""Which records stay and on which side, from their hashes alone: caps, exact duplicates and the held-out split.

Pure: arrays in, verdicts out. All decisions hang on content and the seed, never on order or on other records, but that of
several same ones the first stays: by source in the manifest's order, then file, then line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

INDEX_DTYPE = np.dtype(
    [
        ("hi", "<u8"),  # content hash, first half; a shard's index is sorted by it
        ("lo", "<u8"),
        ("prompt", "<u8"),
        ("row", "<u4"),  # of the raw shard
        ("line", "<i8"),  # of the source's file
    ]
)
"""One candidate of a shard."""

VERDICT_DTYPE = np.dtype(
    [("shard", "<u4"), ("row", "<u4"), ("verdict", "u1"), ("first_shard", "<u4"), ("first_row", "<u4")]
)
"""What becomes of a candidate; `first_*` say which record a duplicate repeats."""

_ALL = np.uint64(2**64 - 1)
_SPLIT_SALT, _CAP_SALT = 1, 2


class Verdict(IntEnum):
    TRAIN = 0
    EVALUATION = 1
    DUPLICATE = 2
    CAPPED = 3


@dataclass(frozen=True)
class SelectionRule:
    """`cap_thresholds[source]` is the largest order that is kept; `evaluation_fraction` of the prompts is held out."""

    seed: int
    evaluation_fraction: float
    cap_thresholds: tuple[int, ...]


def mix(values: NDArray[np.uint64], seed: int, salt: int) -> NDArray[np.uint64]:
    """A seeded one-to-one scrambling of 64-bit values (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = values + np.uint64((0x9E3779B97F4A7C15 * (2 * seed + 1 + (salt << 33))) & 0xFFFFFFFFFFFFFFFF)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def order_for_caps(hi: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The order in which a source's records are taken when it is capped: by content, so that no other record matters."""
    return mix(hi, seed, _CAP_SALT)


def threshold_of(fraction: float) -> int:
    """The largest 64-bit value within the first `fraction` of all."""
    return min(int(fraction * 2**64), 2**64 - 1)


def select_smallest(orders: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """The `count` smallest, sorted."""
    if len(orders) > count:
        orders = np.partition(orders, count - 1)[:count]
    return np.sort(orders)


def distinct_orders(index: NDArray, sources: NDArray[np.uint32], source: int, seed: int) -> NDArray[np.uint64]:
    """The orders of a source's distinct records."""
    own = index[sources == source]
    keys = np.unique(np.stack([own["hi"], own["lo"]], axis=1), axis=0)
    return order_for_caps(keys[:, 0], seed)


def settle(index: NDArray, shards: NDArray[np.uint32], sources: NDArray[np.uint32], rule: SelectionRule) -> NDArray:
    """The verdicts on candidates of which all same ones are present.

    `index` [n] of INDEX_DTYPE; `shards` [n] in the order that decides which one is first; `sources` [n], ascending with it.
    Returns [n] of VERDICT_DTYPE, sorted by shard and row.

    Within a source, repeats of a record are duplicates; then the cap is applied; then repeats in later sources are duplicates.
    """
    order = np.lexsort((index["row"], shards, index["lo"], index["hi"]))
    index, shards, sources = index[order], shards[order], sources[order]
    count = len(index)
    verdicts = np.zeros(count, dtype=VERDICT_DTYPE)
    verdicts["shard"], verdicts["row"] = shards, index["row"]
    if not count:
        return verdicts
    new_key = np.ones(count, dtype=bool)
    new_key[1:] = (index["hi"][1:] != index["hi"][:-1]) | (index["lo"][1:] != index["lo"][:-1])
    new_source = new_key.copy()
    new_source[1:] |= sources[1:] != sources[:-1]

    thresholds = np.asarray(rule.cap_thresholds, dtype=np.uint64)
    capped = order_for_caps(index["hi"], rule.seed) > thresholds[sources]
    candidates = new_source & ~capped
    group = np.cumsum(new_key) - 1
    first_of_group = np.full(int(group[-1]) + 1, count, dtype=np.int64)
    positions = np.flatnonzero(candidates)
    np.minimum.at(first_of_group, group[positions], positions)
    first_in_source = np.maximum.accumulate(np.where(new_source, np.arange(count), 0))

    held_out = find_held_out(index["prompt"], rule.seed, rule.evaluation_fraction)
    verdict = np.where(held_out, Verdict.EVALUATION, Verdict.TRAIN).astype(np.uint8)
    repeats = np.where(new_source, first_of_group[group], first_in_source)
    is_duplicate = (~new_source) | (candidates & (first_of_group[group] != np.arange(count)))
    verdict[new_source & capped] = Verdict.CAPPED
    verdict[is_duplicate] = Verdict.DUPLICATE
    verdicts["verdict"] = verdict
    verdicts["first_shard"][is_duplicate] = shards[repeats[is_duplicate]]
    verdicts["first_row"][is_duplicate] = index["row"][repeats[is_duplicate]]
    return verdicts[np.lexsort((verdicts["row"], verdicts["shard"]))]


def find_held_out(prompts: NDArray[np.uint64], seed: int, evaluation_fraction: float) -> NDArray[np.bool_]:
    """Which of the records with these prompt hashes belong to the evaluation side."""
    if evaluation_fraction <= 0:
        return np.zeros(len(prompts), dtype=bool)
    return mix(prompts, seed, _SPLIT_SALT) <= np.uint64(threshold_of(evaluation_fraction))


def is_held_out(prompt: int, seed: int, evaluation_fraction: float) -> bool:
    """Whether the record with this prompt hash (64 bits) belongs to the evaluation side."""
    return bool(find_held_out(np.array([prompt], dtype=np.uint64), seed, evaluation_fraction)[0])


def slice_partition(index: NDArray, partition: int, partitions: int) -> NDArray:
    """The part of a sorted shard index whose hashes fall into one of `partitions` equal ranges."""
    low, high = (2**64 * partition) // partitions, (2**64 * (partition + 1)) // partitions
    start = int(np.searchsorted(index["hi"], np.uint64(low)))
    end = len(index) if high == 2**64 else int(np.searchsorted(index["hi"], np.uint64(high)))
    return index[start:end]


def stack_indexes(
    parts: Sequence[NDArray], shards: Sequence[int], sources: Sequence[int]
) -> tuple[NDArray, NDArray[np.uint32], NDArray[np.uint32]]:
    """Indexes of several shards as one, with each entry's shard and source."""
    if not parts:
        return np.zeros(0, INDEX_DTYPE), np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    sizes = [len(p) for p in parts]
    return (
        np.concatenate(parts),
        np.repeat(np.asarray(shards, np.uint32), sizes),
        np.repeat(np.asarray(sources, np.uint32), sizes),
    )

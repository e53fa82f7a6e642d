"""Sets of shingles, their MinHash sketches, and the bands by which similar sets meet.

A set is sorted, its values 52-bit hashes: two records' sets then fit side by side into the 64 bits that are sorted at once. MinHash:
Broder 1997; bands: Leskovec et al., Mining of Massive Datasets, 3.4.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamero.data.near.words import Hashes, Offsets, Words, mix

LEAST_RECALL = 0.97
"""Share of the pairs at the threshold itself that must meet in a band; above it more do."""

_LOCAL_BITS = 12
_LOCAL = 1 << _LOCAL_BITS
_BLOCK_SHINGLES = 1 << 15
"""Permuted at a time: what is at hand stays in the second-level cache."""

_SEED = 0x6C6C616D


@dataclass(frozen=True)
class ShingleSets:
    """Sets of shingles in a row: `values` sorted within each, `offsets` [sets + 1] where each begins."""

    values: Hashes
    offsets: Offsets

    @property
    def sizes(self) -> Offsets:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Bands:
    """How a sketch is cut: `count` bands of `rows` values each."""

    count: int
    rows: int

    def recall(self, similarity: float) -> float:
        """The chance that two sets of this Jaccard similarity share a band."""
        return 1.0 - float((1.0 - similarity**self.rows) ** self.count)


def choose_bands(permutations: int, threshold: float, least_recall: float = LEAST_RECALL) -> Bands:
    """The longest bands with which pairs at the threshold are still found."""
    for rows in range(permutations, 1, -1):
        bands = Bands(permutations // rows, rows)
        if bands.recall(threshold) >= least_recall:
            return bands
    return Bands(permutations, 1)


def build_shingles(words: Words, ngram: int) -> tuple[Hashes, Offsets]:
    """The n-grams of each text in their order; a text of fewer words is one shingle, one without words has none."""
    if ngram == 1:
        return words.hashes, words.offsets
    lengths = words.lengths
    counts = np.where(lengths >= ngram, lengths - ngram + 1, np.minimum(lengths, 1))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    places = spread_ranges(words.offsets[:-1], counts)
    stops = np.repeat(words.offsets[1:], counts)
    values = np.zeros(len(places), np.uint64)
    factor = np.uint64(0xD1342543DE82EF95)
    for i in range(ngram):
        inside = places + i < stops
        values *= factor
        values[inside] += words.hashes[places[inside] + i]
    return mix(values), offsets


def spread_ranges(starts: Offsets, counts: Offsets) -> NDArray[np.int64]:
    """start, start + 1, … (count of them) for each, in a row."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def shorten(shingles: Hashes) -> Hashes:
    """The 52 bits of each that sets hold."""
    return shingles >> np.uint64(_LOCAL_BITS)


def collect_sets(shingles: Hashes, offsets: Offsets) -> ShingleSets:
    """The shingles of each text once, sorted."""
    parts: list[Hashes] = []
    sizes: list[NDArray[np.int64]] = []
    for first in range(0, len(offsets) - 1, _LOCAL):
        bounds = offsets[first : first + _LOCAL + 1]
        values = shorten(shingles[bounds[0] : bounds[-1]])
        local = np.repeat(np.arange(len(bounds) - 1, dtype=np.uint64), np.diff(bounds))
        values |= local << np.uint64(64 - _LOCAL_BITS)
        values.sort()
        if len(values):
            values = values[np.concatenate([[True], values[1:] != values[:-1]])]
        sizes.append(np.bincount((values >> np.uint64(64 - _LOCAL_BITS)).astype(np.int64), minlength=len(bounds) - 1))
        parts.append(values & np.uint64((1 << (64 - _LOCAL_BITS)) - 1))
    if not parts:
        return ShingleSets(np.zeros(0, np.uint64), np.zeros(1, np.int64))
    return ShingleSets(np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64))


def sketch_sets(sets: ShingleSets, count: int) -> NDArray[np.uint32]:
    """MinHash sketches [count, sets]: the least of each set under `count` permutations a·x + b of 32 bits.

    Empty sets get a value of no meaning.
    """
    generator = np.random.default_rng(_SEED)
    factors = generator.integers(0, 2**32, count, dtype=np.uint32) | np.uint32(1)
    shifts = generator.integers(0, 2**32, count, dtype=np.uint32)
    sketches = np.zeros((count, len(sets.offsets) - 1), np.uint32)
    filled = np.flatnonzero(sets.sizes)
    starts, stops = sets.offsets[filled], sets.offsets[filled + 1]
    for first, last in _cut_by_size(starts, stops):
        values = sets.values[starts[first] : stops[last - 1]].astype(np.uint32)
        places = starts[first:last] - starts[first]
        permuted = np.empty_like(values)
        least = np.empty(last - first, np.uint32)
        for i in range(count):
            np.multiply(values, factors[i], out=permuted)
            np.add(permuted, shifts[i], out=permuted)
            np.minimum.reduceat(permuted, places, out=least)
            sketches[i, filled[first:last]] = least
    return sketches


def _cut_by_size(starts: Offsets, stops: Offsets) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(starts):
        last = int(np.searchsorted(stops, starts[first] + _BLOCK_SHINGLES, side="right"))
        last = max(last, first + 1)
        yield first, last
        first = last


def build_keys(sketches: NDArray[np.uint32], bands: Bands, numbers: Hashes) -> Hashes:
    """A key [bands, sets] for each band: equal where its values and the texts' numbers are."""
    keys = np.empty((bands.count, sketches.shape[1]), np.uint64)
    factor = np.uint64(0xD1342543DE82EF95)
    for band in range(bands.count):
        key = numbers + np.uint64(band)
        for row in sketches[band * bands.rows : (band + 1) * bands.rows]:
            key *= factor
            key += row
            key ^= key >> np.uint64(29)
        keys[band] = mix(key)
    return keys

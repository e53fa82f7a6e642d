"""Which runs of words two bodies of text have in common, and which sets of shingles are very alike: kernels of decontamination.

The Jaccard rule is exact: two sets can only be as similar as wanted if the first few of their sorted values have one in common (prefix
filtering: Bayardo, Ma and Srikant 2007).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamero.data.near.sketch import ShingleSets, build_shingles, spread_ranges
from llamero.data.near.words import Hashes, Offsets, Words

ENTRY_DTYPE = np.dtype([("hash", "<u8"), ("record", "<u8")])
"""A hash and the number of a record that has it; tables are sorted by both."""

PREFIX_RECORDS = 64
"""Evaluation records that are compared for one shingle: of those that stand in more, the first so many."""


@dataclass(frozen=True)
class Runs:
    """Runs of n words of texts: `hashes` in a row, `offsets` [texts + 1] where each text begins. A text of fewer words is one run or none."""

    hashes: Hashes
    offsets: Offsets


def build_runs(words: Words, ngram: int, min_words: int, may_be_short: NDArray[np.bool_]) -> Runs:
    """The runs of `ngram` words; where `may_be_short` [texts] allows it, a shorter text of `min_words` or more as a whole."""
    hashes, offsets = build_shingles(words, ngram)
    counts = np.diff(offsets)
    lengths = words.lengths
    counts = np.where((lengths >= ngram) | (may_be_short & (lengths >= min_words)), counts, 0)
    chosen = hashes[spread_ranges(offsets[:-1], counts)]
    return Runs(chosen, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


def make_entries(hashes: Hashes, records: NDArray[np.integer]) -> NDArray:
    """Each hash of each record once, sorted."""
    table = np.zeros(len(hashes), ENTRY_DTYPE)
    table["hash"], table["record"] = hashes, records
    table = sort_entries(table)
    is_new = np.ones(len(table), bool)
    is_new[1:] = (table["hash"][1:] != table["hash"][:-1]) | (table["record"][1:] != table["record"][:-1])
    return table[is_new]


def sort_entries(entries: NDArray) -> NDArray:
    """By hash and record; ten times as fast as by comparing whole entries."""
    return entries[np.lexsort((entries["record"], entries["hash"]))]


def find_prefixes(sets: ShingleSets, least: float) -> tuple[Hashes, NDArray[np.int64]]:
    """The values by which sets of at least this Jaccard similarity meet, and the position of each one's set."""
    sizes = sets.sizes
    counts = np.where(sizes > 0, sizes - np.ceil(least * sizes - 1e-9).astype(np.int64) + 1, 0)
    counts = np.minimum(counts, sizes)
    return sets.values[spread_ranges(sets.offsets[:-1], counts)], np.repeat(np.arange(len(sizes)), counts)


def drop_boilerplate(entries: NDArray, most: int) -> NDArray:
    """Of each hash that at most `most` records have the entry of the first one."""
    first = _find_first(entries)
    counts = np.diff(np.append(first, len(entries)))
    return entries[first[counts <= most]]


def cap_entries(entries: NDArray, most: int = PREFIX_RECORDS) -> NDArray:
    """At most so many entries of each hash."""
    first = _find_first(entries)
    counts = np.diff(np.append(first, len(entries)))
    return entries[spread_ranges(first, np.minimum(counts, most))]


def _find_first(entries: NDArray) -> NDArray[np.int64]:
    changes = np.ones(len(entries), bool)
    changes[1:] = entries["hash"][1:] != entries["hash"][:-1]
    return np.flatnonzero(changes)


def look_up(hashes: Hashes, table: Hashes) -> NDArray[np.int64]:
    """The place of each hash in a sorted table of distinct ones, -1 where it is not there."""
    order = np.argsort(hashes)  # neighbours lie near each other in the table: it may be mapped
    found = np.full(len(hashes), -1, np.int64)
    if not len(table):
        return found
    asked = hashes[order]
    places = np.minimum(np.searchsorted(table, asked), len(table) - 1)
    hit = table[places] == asked
    found[order[hit]] = places[hit]
    return found


def look_up_all(hashes: Hashes, table: NDArray) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """All entries with each hash: positions in `hashes`, and the records."""
    order = np.argsort(hashes)
    asked = hashes[order]
    starts = np.searchsorted(table["hash"], asked, side="left")
    counts = np.searchsorted(table["hash"], asked, side="right") - starts
    return np.repeat(order, counts), table["record"][spread_ranges(starts, counts)]


def find_longest_run(is_hit: NDArray[np.bool_]) -> int:
    """The greatest number of hits in a row."""
    edges = np.diff(np.concatenate([[0], is_hit.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return int((stops - starts).max()) if len(starts) else 0

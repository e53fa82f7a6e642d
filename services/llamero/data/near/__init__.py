"""Near duplicates among texts in memory, by the kernels that the tasks of the nearDuplicates step use on shards.

Hash words (`words`), make sets of shingles and MinHash sketches (`sketch`), pair what shares a band and verify it (`pairs`),
choose what stays (`choosing`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamero.data.near.choosing import choose_kept, complete_edges, connect
from llamero.data.near.pairs import Pairs, Similarities, drop_repeated, may_be_similar, measure_jaccard, pair_up
from llamero.data.near.sketch import (
    ShingleSets,
    build_keys,
    build_shingles,
    choose_bands,
    collect_sets,
    shorten,
    sketch_sets,
)
from llamero.data.near.words import Hashes, Offsets, hash_words, mix
from llamero.data.rouge import least_jaccard, measure_rouge
from llamero.spec.steps import NearDuplicatesStep


@dataclass(frozen=True)
class NearDuplicates:
    """What is alike among n texts.

    `candidates`: pairs that shared a band; `pairs` [m, 2] those verified, with their `similarities` [m]; `favoured` [n]: the text
    in whose favour each is dropped, -1 where it stays; `seconds` by stage: sketch, candidates, verify, choose.
    """

    candidates: int
    pairs: Pairs
    similarities: Similarities
    favoured: NDArray[np.int64]
    seconds: dict[str, float]

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions of the texts that stay."""
        return np.flatnonzero(self.favoured < 0)


def find_near_duplicates(texts: Sequence[str], options: NearDuplicatesStep | None = None) -> NearDuplicates:
    """The near duplicates among texts. Of a cluster the longest stays, or the first with `keep: first`; `field` plays no part."""
    options = options or NearDuplicatesStep()
    clock = [time.perf_counter()]
    words = hash_words(texts)
    shingles, offsets = build_shingles(words, options.ngram)
    # A sketch is the same with repeated shingles: sets are only needed by the verification.
    keys = sketch_keys(ShingleSets(shorten(shingles), offsets), words.numbers, options)
    clock.append(time.perf_counter())
    candidates = _find_candidates(offsets, keys)
    clock.append(time.perf_counter())
    sets = collect_sets(shingles, offsets)
    if options.verify == "jaccard":
        pairs = candidates[may_be_similar(sets.sizes, candidates, options.threshold)]
        similarities = measure_jaccard(sets, pairs)
    else:
        pairs, similarities = candidates, measure_rouge(texts, candidates, options.threshold)
    alike = similarities >= options.threshold
    pairs, similarities = pairs[alike], similarities[alike]
    clock.append(time.perf_counter())
    favoured = _choose(texts, options, sets, pairs, similarities)
    clock.append(time.perf_counter())
    stages = ("sketch", "candidates", "verify", "choose")
    seconds = {name: after - before for name, before, after in zip(stages, clock, clock[1:], strict=False)}
    return NearDuplicates(len(candidates), pairs, similarities, favoured, seconds)


def build_sets(texts: Sequence[str], ngram: int) -> tuple[ShingleSets, Hashes]:
    """The texts' sets of shingles, and the value [texts] that stands for each one's numbers and operators."""
    words = hash_words(texts)
    return collect_sets(*build_shingles(words, ngram)), words.numbers


def sketch_keys(sets: ShingleSets, numbers: Hashes, options: NearDuplicatesStep) -> Hashes:
    """The sets' band keys [bands, sets]."""
    threshold = options.threshold if options.verify == "jaccard" else least_jaccard(options.threshold)
    bands = choose_bands(options.permutations, threshold)
    return build_keys(sketch_sets(sets, bands.count * bands.rows), bands, numbers)


def _find_candidates(offsets: Offsets, keys: Hashes) -> Pairs:
    filled = np.flatnonzero(np.diff(offsets))
    ties = mix(filled.astype(np.uint64))
    parts = [filled[pair_up(band[filled], ties)] for band in keys]
    return drop_repeated(np.concatenate(parts), len(offsets) - 1)


def _choose(
    texts: Sequence[str], options: NearDuplicatesStep, sets: ShingleSets, pairs: Pairs, similarities: Similarities
) -> NDArray[np.int64]:
    favoured = np.full(len(texts), -1, np.int64)
    members = np.unique(pairs)
    if not len(members):
        return favoured
    if options.keep != "first":
        members = members[np.argsort([-len(texts[i]) for i in members], kind="stable")]
    ranks = np.zeros(len(texts), np.int64)
    ranks[members] = np.arange(len(members))
    edges = np.sort(ranks[pairs], axis=1)
    roots = np.arange(len(members), dtype=np.int32)
    connect(roots, edges)

    def measure(wanted: Pairs) -> Similarities:
        if options.verify == "jaccard":
            return measure_jaccard(sets, members[wanted])
        return measure_rouge(texts, members[wanted], options.threshold)

    completed = complete_edges(edges, similarities, roots.astype(np.int64), measure, options.threshold)
    chosen, _ = choose_kept(len(members), *completed)
    dropped = chosen >= 0
    favoured[members[dropped]] = members[chosen[dropped]]
    return favoured

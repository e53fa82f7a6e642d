"""Duplicates, caps and the split: decided by content alone, the same whoever does it and however the data is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.selection import (
    INDEX_DTYPE,
    SelectionRule,
    Verdict,
    distinct_orders,
    mix,
    order_for_caps,
    select_smallest,
    settle,
    slice_partition,
    threshold_of,
)

ALL = 2**64 - 1


def spread(number: int) -> int:
    """A small number as a hash-like one."""
    return int(mix(np.array([number], np.uint64), 0, 9)[0])


def build(contents: list[tuple[int, int]], shard_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source, content) pairs, sources ascending, as an index with its shards and sources."""
    index = np.zeros(len(contents), INDEX_DTYPE)
    shards = np.zeros(len(contents), np.uint32)
    shard, filled, last = 0, 0, None
    for i, (source, content) in enumerate(contents):
        if filled == shard_size or source != last:
            shard, filled, last = shard + (i > 0), 0, source
        index[i] = (spread(content), content, spread(content % 5), filled, i + 1)
        shards[i] = shard
        filled += 1
    return index, shards, np.array([s for s, _ in contents], np.uint32)


def verdicts_by_line(contents: list[tuple[int, int]], rule: SelectionRule, shard_size: int = 1000) -> list[int]:
    index, shards, sources = build(contents, shard_size)
    verdicts = settle(index, shards, sources, rule)
    order = np.lexsort((index["row"], shards))
    assert [(v["shard"], v["row"]) for v in verdicts] == [(shards[i], index["row"][i]) for i in order]
    return [int(v) for v in verdicts["verdict"]]


def rule(fraction: float = 0.0, caps: tuple[int, ...] = (ALL, ALL, ALL), seed: int = 0) -> SelectionRule:
    return SelectionRule(seed, fraction, caps)


def test_the_first_of_the_same_records_stays_and_the_others_say_which():
    contents = [(0, 7), (0, 8), (0, 7), (1, 8), (1, 9)]
    index, shards, sources = build(contents, 10)
    verdicts = settle(index, shards, sources, rule())
    assert [Verdict(v) for v in verdicts["verdict"]] == [
        Verdict.TRAIN, Verdict.TRAIN, Verdict.DUPLICATE, Verdict.DUPLICATE, Verdict.TRAIN
    ]  # fmt: skip
    assert list(verdicts["first_row"][2:4]) == [0, 1]
    assert list(verdicts["first_shard"][2:4]) == [0, 0]


def test_a_record_that_its_first_source_leaves_out_is_kept_by_the_next():
    orders = order_for_caps(np.array([spread(7)], np.uint64), 0)
    below = int(orders[0]) - 1
    contents = [(0, 7), (0, 7), (1, 7), (2, 7)]
    assert verdicts_by_line(contents, rule(caps=(below, ALL, ALL))) == [
        Verdict.CAPPED, Verdict.DUPLICATE, Verdict.TRAIN, Verdict.DUPLICATE
    ]  # fmt: skip


records = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=80).map(sorted)


def shuffled_within_sources(contents: list[tuple[int, int]], randomness) -> list[tuple[int, int]]:
    contents = contents.copy()
    randomness.shuffle(contents)
    return sorted(contents, key=lambda c: c[0])


@settings(max_examples=200)
@given(records, st.floats(0, 0.5), st.integers(0, 5), st.integers(1, 50), st.randoms(use_true_random=False))
def test_which_contents_are_kept_on_which_side_hangs_on_nothing_but_content(contents, fraction, seed, size, randomness):
    decide = rule(fraction, (threshold_of(0.5), ALL, threshold_of(0.3)), seed)

    def kept(of: list[tuple[int, int]], shard_size: int) -> set[tuple[int, int]]:
        found = [(c, v) for (_, c), v in zip(of, verdicts_by_line(of, decide, shard_size), strict=True) if v <= 1]
        assert len(found) == len({c for c, _ in found}), "a record was kept twice"
        return set(found)

    assert kept(contents, 1000) == kept(shuffled_within_sources(contents, randomness), size)


@settings(max_examples=100)
@given(records, records, st.floats(0, 0.5))
def test_records_keep_their_side_when_the_data_grows(contents, more, fraction):
    def sides(of: list[tuple[int, int]]) -> dict[int, int]:
        found = zip(of, verdicts_by_line(of, rule(fraction)), strict=True)
        return {content: verdict for (_, content), verdict in found if verdict <= 1}

    before, after = sides(contents), sides(sorted(contents + more))
    assert before.items() <= after.items()


@settings(max_examples=100)
@given(records, st.floats(0, 0.5))
def test_the_same_prompt_is_never_on_both_sides(contents, fraction):
    verdicts = verdicts_by_line(contents, rule(fraction))
    sides = {(content % 5, v) for (_, content), v in zip(contents, verdicts, strict=True) if v <= 1}
    assert len({prompt for prompt, _ in sides}) == len(sides)


@settings(max_examples=100)
@given(records, st.integers(1, 7))
def test_ranges_of_hashes_judged_apart_agree_with_all_at_once(contents, ranges):
    index, shards, sources = build(contents, 10)
    decide = rule(0.3, (threshold_of(0.6), ALL, ALL))
    whole = settle(index, shards, sources, decide)
    order = np.argsort(index["hi"], kind="stable")
    index, shards, sources = index[order], shards[order], sources[order]
    parts = []
    seen = 0
    for number in range(ranges):
        size = len(slice_partition(index, number, ranges))
        piece = slice(seen, seen + size)
        parts.append(settle(index[piece], shards[piece], sources[piece], decide))
        seen += size
    assert seen == len(index)
    joined = np.concatenate(parts)
    assert np.array_equal(np.sort(joined, order=["shard", "row"]), whole)


def test_a_share_is_held_out_and_the_seed_changes_which():
    prompts = np.arange(100_000, dtype=np.uint64)
    index = np.zeros(len(prompts), INDEX_DTYPE)
    index["hi"] = mix(prompts, 0, 3)
    index["prompt"] = mix(prompts, 0, 4)
    index["row"] = prompts
    zeros = np.zeros(len(prompts), np.uint32)
    held = [
        settle(index, zeros, zeros, SelectionRule(s, 0.05, (ALL,)))["verdict"] == Verdict.EVALUATION for s in (0, 1)
    ]
    assert held[0].mean() == pytest.approx(0.05, abs=0.003)
    assert (held[0] & held[1]).mean() == pytest.approx(0.0025, abs=0.001)


def test_a_cap_takes_the_first_distinct_records_of_the_hash_order():
    contents = [(0, c) for c in [1, 2, 3, 4, 5, 1, 2, 3]] + [(1, 1)]
    index, _, sources = build(contents, 100)
    orders = distinct_orders(index, sources, 0, seed=3)
    assert len(orders) == 5
    smallest = select_smallest(orders, 2)
    assert list(smallest) == sorted(orders)[:2]
    verdicts = verdicts_by_line(contents, SelectionRule(3, 0.0, (int(smallest[-1]), ALL)))
    assert sum(v <= 1 for v in verdicts[:8]) == 2
    assert verdicts[:8].count(Verdict.DUPLICATE) == 3
    assert verdicts[:8].count(Verdict.CAPPED) == 3


def test_nothing_is_judged_where_there_is_nothing():
    index, shards, sources = np.zeros(0, INDEX_DTYPE), np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    assert len(settle(index, shards, sources, rule())) == 0

"""ROUGE-L F: equal to the plain definition to the last bit, in a pool as for a pair."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.data.rouge import RougePool, least_jaccard, measure_rouge, split_words

WORDS = ["a", "b", "c", "d", "e", "f", "1", "22", "z"]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


def measure_plainly(one: str, other: str) -> float:
    """As it is defined: precision and recall of the longest common subsequence."""
    left, right = tuple(split_words(one)), tuple(split_words(other))

    @cache
    def common(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    length = common(0, 0)
    if not length:
        return 0.0
    precision, recall = length / len(right), length / len(left)
    return 2 * precision * recall / (precision + recall)


def test_words_are_runs_of_ascii_letters_and_digits_in_lower_case():
    assert split_words("Don't PAY 3.50€, mañana_x!") == ["don", "t", "pay", "3", "50", "ma", "ana", "x"]


@given(texts, texts)
def test_a_pair_has_the_value_of_the_plain_definition(one, other):
    assert measure_rouge([one, other], np.array([[0, 1]]))[0] == measure_plainly(one, other)


@given(st.lists(texts, min_size=2, max_size=6), st.sampled_from([0.3, 0.7, 1.0]))
def test_pairs_are_exact_wherever_they_reach_what_is_wanted(several, least):
    pairs = np.array([(i, j) for i in range(len(several)) for j in range(len(several))])
    for (i, j), found in zip(pairs.tolist(), measure_rouge(several, pairs, least), strict=True):
        exact = measure_plainly(several[i], several[j])
        assert found == exact if exact >= least else found in (0.0, exact)


@given(st.lists(texts, max_size=8), texts, st.sampled_from([0.0, 0.3, 0.7]))
def test_the_best_of_a_pool_is_exact_wherever_it_is_above_the_limit(pool, text, limit):
    best = max([measure_plainly(p, text) for p in pool], default=0.0)
    found = RougePool(limit, pool).best(text)
    if best > limit:
        assert found == best
    else:
        assert found <= limit


@pytest.mark.parametrize(("shared", "is_over"), [(7, False), (8, True)])
def test_self_instructs_limit_has_two_sides(shared, is_over):
    words = [f"w{i}" for i in range(10)]
    pool = RougePool(0.7, [" ".join(words)])
    # Of two texts of ten words: F is the share of words they have in common, in order.
    text = " ".join([*words[:shared], *(f"x{i}" for i in range(10 - shared))])
    assert (pool.best(text) > 0.7) == is_over == (measure_plainly(" ".join(words), text) > 0.7)


def test_the_first_of_equally_good_ones_is_named():
    pool = RougePool(0.0, ["a b c", "c d e", "a b c"])
    assert pool.find_best("a b c") == (1.0, 0)
    assert pool.find_best("x y") == (0.0, -1)
    assert len(pool) == 3


def test_long_texts_whose_words_are_counted_past_a_byte_are_compared_all_the_same():
    rng = random.Random(0)
    long = [rng.choice(["the", "a", "of"]) for _ in range(1500)]
    edited = [w for i, w in enumerate(long) if i % 10]
    assert RougePool(0.7, [" ".join(long)]).best(" ".join(edited)) == pytest.approx(2 * 1350 / 2850)


def test_a_pool_grows_and_words_it_did_not_know_become_known():
    pool = RougePool(0.7)
    assert pool.best("write a poem now") == 0.0
    for i in range(200):
        pool.add(f"entry number {i} of many different {i * 7}")
        assert pool.best(f"entry number {i} of many different {i * 7}") == 1.0
    pool.add("write a poem now")
    assert pool.find_best("write a poem now") == (1.0, 200)


def test_texts_of_other_scripts_have_no_words_and_equal_nothing():
    assert RougePool(0.0, ["中国", ""]).best("中国") == 0.0


def test_a_limit_of_one_makes_no_sense():
    with pytest.raises(ValueError, match="share below 1"):
        RougePool(1.0)


def test_rouge_of_distinct_words_bounds_jaccard():
    assert least_jaccard(0.7) == pytest.approx(7 / 13)

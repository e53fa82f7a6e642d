"""Greedy choices by blocks against the plain loops that they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamero.data.choosing import k_center, k_center_distances, keep_dissimilar
from llamero.data.choosing.greedy import find_nearest


def draw_unit(count: int, dimensions: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def choose_plainly(vectors: NDArray, first: list[int], count: int) -> tuple[list[int], list[float]]:
    """One record at a time, in float64."""
    exact = vectors.astype(np.float64)
    chosen, found = list(first), [np.inf] * len(first)
    while len(chosen) < count:
        squares = np.min([((exact - exact[i]) ** 2).sum(axis=1) for i in chosen], axis=0)
        squares[chosen] = -1
        chosen.append(int(squares.argmax()))
        found.append(float(np.sqrt(squares.max())))
    return chosen, found


@pytest.mark.parametrize(("count", "dimensions", "wanted"), [(700, 16, 150), (3000, 8, 60), (90, 4, 90), (5, 3, 2)])
def test_blocks_choose_what_one_at_a_time_chooses(count: int, dimensions: int, wanted: int) -> None:
    vectors = draw_unit(count, dimensions, seed=count)
    chosen, distances = k_center_distances(vectors, np.array([3]), wanted)
    plain, found = choose_plainly(vectors, [3], wanted)
    assert chosen.tolist() == plain
    assert distances[1:] == pytest.approx(found[1:], abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=120),
    st.integers(1, 130),
)
def test_on_a_grid_full_of_ties_and_copies_the_radius_is_that_of_the_plain_loop(
    points: list[tuple[int, int]], wanted: int
) -> None:
    vectors = np.array(points, np.float32)
    chosen, distances = k_center_distances(vectors, np.array([0]), wanted)
    plain, found = choose_plainly(vectors, [0], min(wanted, len(points)))
    assert len(set(chosen.tolist())) == len(chosen) == min(wanted, len(points))
    assert distances.tolist() == pytest.approx(found, abs=1e-3)
    assert chosen.tolist() == plain  # whole numbers have no rounding, so that ties go to the first


def test_planted_clusters_are_all_covered_by_as_many_records_as_there_are_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = draw_unit(40, 32, seed=1)
    labels = np.concatenate([np.zeros(5000, int), np.arange(40)])  # one huge cluster, and one record of each
    vectors = (centres[labels] + 0.01 * rng.standard_normal((len(labels), 32))).astype(np.float32)
    chosen = k_center(vectors, np.array([0]), 40)
    assert sorted(labels[chosen].tolist()) == list(range(40))
    random = rng.permutation(len(labels))[:40]
    assert len(set(labels[random].tolist())) < 5


def test_points_stand_for_the_vectors_nearest_to_them_each_taken_once() -> None:
    vectors = np.array([[0, 0], [1, 0], [5, 0], [9, 0]], np.float32)
    points = np.array([[5.2, 0], [4.9, 0], [0.2, 0]], np.float32)
    assert k_center(vectors, points, 3).tolist() == [2, 0, 3]
    assert k_center(vectors, points, 1).tolist() == [2]


def test_more_than_there_are_gives_all_and_none_gives_none() -> None:
    vectors = draw_unit(6, 3, seed=0)
    assert sorted(k_center(vectors, np.array([], np.int64), 99).tolist()) == list(range(6))
    assert k_center(vectors[:0], np.array([], np.int64), 5).tolist() == []
    assert k_center(vectors, np.array([1]), 0).tolist() == []


def test_the_nearest_chosen_one_is_found_for_each() -> None:
    vectors = draw_unit(500, 6, seed=4)
    chosen = np.array([7, 100, 423])
    nearest, distances = find_nearest(vectors, chosen)
    exact = np.linalg.norm(vectors[:, None] - vectors[chosen][None], axis=2)
    assert nearest.tolist() == chosen[exact.argmin(axis=1)].tolist()
    assert distances == pytest.approx(exact.min(axis=1), abs=1e-3)


def keep_plainly(vectors: NDArray, limit: float, count: int | None) -> list[int]:
    kept: list[int] = []
    similar = np.round(vectors @ vectors.T, 6)
    for i in range(len(vectors)):
        if count is not None and len(kept) >= count:
            break
        if all(similar[i, j] <= limit for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize(("limit", "count"), [(0.9, None), (0.5, None), (0.5, 40), (0.999, 3), (0.3, 1)])
def test_the_same_are_kept_as_by_the_plain_loop_over_several_blocks(limit: float, count: int | None) -> None:
    vectors = draw_unit(4500, 5, seed=9)
    kept, other, similarity = keep_dissimilar(vectors, limit, count)
    assert kept.tolist() == keep_plainly(vectors, limit, count)
    dropped = np.flatnonzero(other >= 0)
    assert set(other[dropped].tolist()) <= set(kept.tolist())
    assert not set(dropped.tolist()) & set(kept.tolist())
    assert (similarity[dropped] > limit).all() and (similarity[kept] <= limit).all()
    exact = np.einsum("ij,ij->i", vectors[dropped], vectors[other[dropped]])
    assert similarity[dropped] == pytest.approx(exact, abs=1e-5)
    if count is None:
        assert len(dropped) + len(kept) == len(vectors)


def test_of_planted_equal_vectors_exactly_the_first_is_kept() -> None:
    vectors = draw_unit(300, 24, seed=2)
    copies = vectors[:50].repeat(4, axis=0) + 1e-4 * np.random.default_rng(3).standard_normal((200, 24)).astype("f4")
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    kept, other, _ = keep_dissimilar(np.concatenate([vectors, copies]), 0.9)
    assert kept.tolist() == list(range(300))
    assert other[300:].tolist() == np.arange(50).repeat(4).tolist()


@pytest.mark.parametrize(("cosine", "kept"), [(0.8999, [0, 1]), (0.9, [0, 1]), (0.9001, [0])])
def test_a_similarity_at_the_limit_is_kept_and_above_it_dropped(cosine: float, kept: list[int]) -> None:
    vectors = np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]], np.float32)
    assert keep_dissimilar(vectors, 0.9)[0].tolist() == kept

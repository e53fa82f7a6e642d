"""Clusters, neighbours, shares, and vectors of words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamero.data.choosing import hashed
from llamero.data.choosing.clusters import assign, find_agglomerative, find_k_means
from llamero.data.choosing.neighbours import measure_neighbours
from llamero.data.choosing.tables import allot, count_wanted


def draw_clusters(sizes: list[int], dimensions: int = 16) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((len(sizes), dimensions))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centres[labels] + 0.05 * rng.standard_normal((len(labels), dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("find", [find_k_means, find_agglomerative])
def test_planted_clusters_are_found_the_largest_first(find: object) -> None:
    vectors, labels = draw_clusters([200, 90, 40])
    shuffled = np.random.default_rng(0).permutation(len(vectors))
    centres = find(vectors[shuffled], 3)  # type: ignore[operator]
    found, distances = assign(vectors, centres)
    assert found.tolist() == labels.tolist()
    assert distances.max() < 0.2


def test_no_more_clusters_than_different_vectors() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    assert len(find_k_means(vectors, 10)) == 3
    assert len(find_k_means(vectors[:1], 4)) == len(find_agglomerative(vectors[:1], 4)) == 1


def test_what_a_vector_is_assigned_to_does_not_hang_on_those_beside_it() -> None:
    vectors, _ = draw_clusters([900, 800], dimensions=100)
    centres = find_k_means(vectors, 40)
    labels, distances = assign(vectors, centres)
    order = np.random.default_rng(1).permutation(len(vectors))[:333]
    again, measured = assign(vectors[order], centres)
    assert again.tobytes() == labels[order].tobytes() and measured.tobytes() == distances[order].tobytes()


@pytest.mark.parametrize("count", [1, 2, 5, 40, 900, 2500])
def test_the_sixth_neighbour_is_as_far_as_sorting_all_distances_says(count: int) -> None:
    vectors, _ = draw_clusters([count])
    queries = np.arange(0, count, 3)
    exact = np.linalg.norm(vectors[queries][:, None] - vectors[None], axis=2)
    wanted = np.sort(exact, axis=1)[:, min(6, count - 1)]  # the record itself comes first
    assert measure_neighbours(vectors, queries) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("total", "fraction", "records", "wanted"),
    [(1000, 0.05, None, 50), (1000, 0.05, 7, 7), (10, None, 99, 10), (10, 0.01, None, 1), (0, 0.5, None, 0), (3, 0.5, None, 2), (9, None, None, 9)],
)  # fmt: skip
def test_how_many_are_kept(total: int, fraction: float | None, records: int | None, wanted: int) -> None:
    assert count_wanted(total, fraction, records)[0] == wanted


def test_shares_follow_the_temperature() -> None:
    sizes = np.array([80_000, 10_000, 1_000])
    assert allot(sizes, 91).tolist() == [80, 10, 1]
    cubes = sizes ** (1 / 3)
    assert allot(sizes, 900, 3.0) == pytest.approx(900 * cubes / cubes.sum(), abs=1)
    assert allot(sizes, 900, 100.0) == pytest.approx([300, 300, 300], abs=10)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 400), st.sampled_from([0.5, 1.0, 3.0, 50.0]))
def test_shares_add_up_and_never_exceed_what_there_is(sizes: list[int], wanted: int, temperature: float) -> None:
    given = allot(np.array(sizes, np.int64), wanted, temperature)
    assert given.sum() == min(wanted, sum(sizes))
    assert all(0 <= g <= s for g, s in zip(given, sizes, strict=True))


def test_words_and_pairs_are_counted_whatever_the_batch() -> None:
    texts = ["The cat saw the cat.", "", "8 × 8 is 64", "8 × 8 is 65", "日本語の文", "naïve 🙂 \ud800 end"]
    counts = hashed.WordCounter().count(texts)
    assert len(counts) == 6
    assert counts.counts[counts.starts[0] : counts.starts[1]].sum() == 9  # 5 words, 4 pairs
    assert counts.starts[1] == counts.starts[2]
    assert counts.counts[counts.starts[4] : counts.starts[5]].sum() == 9  # 5 characters, 4 pairs
    one_by_one = hashed.Counts.join([hashed.WordCounter().count([t]) for t in texts])
    assert [getattr(one_by_one, n).tobytes() for n in ("starts", "features", "counts")] == [
        getattr(counts, n).tobytes() for n in ("starts", "features", "counts")
    ]
    swapped = counts.take(np.array([3, 2, 3]))
    assert (
        swapped.features[: swapped.starts[1]].tolist() == counts.features[counts.starts[3] : counts.starts[4]].tolist()
    )


def embed(texts: list[str], dimensions: int = 16) -> NDArray[np.float32]:
    counts = hashed.WordCounter().count(texts)
    return hashed.fit_projection(len(counts), hashed.count_documents(counts), counts, dimensions).apply(counts)


def test_texts_of_one_subject_lie_closer_than_texts_of_two() -> None:
    weather = [f"rain and wind from the {d} with clouds and snow over hills {i}" for i, d in enumerate("abcdefgh")]
    cooking = [f"fry onions with butter in a pan and add salt to the {d} soup {i}" for i, d in enumerate("ijklmnop")]
    vectors = embed(weather + cooking, 4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    similar = vectors @ vectors.T
    assert similar[:8, :8].min() > similar[:8, 8:].max() + 0.3


def test_texts_without_a_known_word_share_one_vector_of_norm_one() -> None:
    vectors = embed(["common words here", "common words there", "", "?!"])
    assert vectors[2:].tolist() == [[0.0] * 15 + [1.0]] * 2
    assert np.isfinite(embed(["", ""])).all()


def test_the_projection_spans_what_an_exact_decomposition_finds() -> None:
    rng = np.random.default_rng(0)
    topics = [[f"t{k}w{j}" for j in range(10)] for k in range(6)]
    texts = [" ".join(rng.choice(topics[i % 6], 25)) for i in range(150)]
    counts = hashed.WordCounter().count(texts)
    projection = hashed.fit_projection(150, hashed.count_documents(counts), counts, 6)
    matrix = hashed._weigh(counts, projection.features, projection.weights).toarray()
    _, _, exact = np.linalg.svd(matrix, full_matrices=False)
    angles = np.linalg.svd(exact[:6] @ projection.matrix, compute_uv=False)
    assert angles == pytest.approx(np.ones(6), abs=1e-3)

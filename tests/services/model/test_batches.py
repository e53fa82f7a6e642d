import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.model.batches import epoch_order, lay_out, plan_bins, plan_dataset_bins

sizes = st.lists(st.integers(1, 100), max_size=120)


@given(lengths=sizes, slack=st.integers(0, 200))
def test_every_example_is_in_one_bin_and_no_bin_is_over_capacity(lengths: list[int], slack: int) -> None:
    capacity = max(lengths, default=1) + slack
    bins = plan_bins(lengths, capacity)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in chosen) <= capacity for chosen in bins)


@given(lengths=sizes)
def test_bins_are_those_of_plain_first_fit_decreasing(lengths: list[int]) -> None:
    expected: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for chosen in expected:
            if sum(lengths[j] for j in chosen) + lengths[i] <= 100:
                chosen.append(i)
                break
        else:
            expected.append([i])
    assert plan_bins(lengths, 100) == expected


def test_an_example_that_fits_no_bin_is_named() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens"):
        plan_bins([3, 9, 4], 8)


@given(lengths=sizes, seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_bins_over_the_set_hold_every_example_once_each_epoch(lengths: list[int], seed: int, epoch: int) -> None:
    bins = plan_dataset_bins(lengths, 100, seed, epoch)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in chosen) <= 100 for chosen in bins)
    assert bins == plan_dataset_bins(lengths, 100, seed, epoch)


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(1000, seed=3, epoch=0)
    assert sorted(first.tolist()) == list(range(1000))
    np.testing.assert_array_equal(first, epoch_order(1000, seed=3, epoch=0))
    assert first.tolist() != epoch_order(1000, seed=3, epoch=1).tolist()
    assert first.tolist() != epoch_order(1000, seed=4, epoch=0).tolist()


def test_a_row_tells_its_documents_apart() -> None:
    batch = lay_out([([5, 6, 7], [0, 1, 1]), ([8], [1]), ([9, 10], [1, 1])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.starts.tolist() == [0, 3, 4, 6]
    assert batch.target_positions.tolist() == [0, 1, 4]
    assert batch.target_ids.tolist() == [6, 7, 10]
    assert batch.target_documents.tolist() == [0, 0, 2]
    assert (batch.tokens, batch.targets, batch.lengths) == (6, 3, (3, 1, 2))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1)), min_size=1, max_size=9), min_size=1, max_size=6)
)
def test_targets_are_the_masked_tokens_that_something_predicts(rows: list[list[tuple[int, int]]]) -> None:
    examples = [([p[0] for p in row], [p[1] for p in row]) for row in rows]
    batch = lay_out(examples)
    wanted = [(n, token) for n, row in enumerate(rows) for token, trained in row[1:] if trained]
    assert list(zip(batch.target_documents.tolist(), batch.target_ids.tolist(), strict=True)) == wanted
    after = batch.input_ids[0][batch.target_positions + 1]
    assert after.tolist() == batch.target_ids.tolist()


@pytest.mark.parametrize("examples", [[], [([], [])], [([1], [1]), ([], [])]])
def test_an_empty_example_is_refused(examples: list[tuple[list[int], list[int]]]) -> None:
    with pytest.raises(ValueError, match="at least one example"):
        lay_out(examples)

"""Which examples a step takes: every example once an epoch, the same whatever the bins."""

import numpy as np
import pytest

from llamero.training.steps import StepPlan, lay_into_bins

LENGTHS = np.asarray([5, 60, 12, 33, 33, 8, 47, 21, 64, 3, 18])


def make_plan(**changes: object) -> StepPlan:
    settings = {
        "lengths": LENGTHS,
        "batch_size": 4,
        "packing": "batch",
        "sequence_length": 64,
        "seed": 7,
        "epochs": 2.0,
        "max_steps": None,
    }
    return StepPlan(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("packing", ["batch", "dataset"])
def test_each_epoch_takes_every_example_once_and_keeps_the_last_partial_step(packing: str) -> None:
    plan = make_plan(packing=packing)
    epochs = [
        [i for step in range(e * plan.steps_per_epoch, (e + 1) * plan.steps_per_epoch) for i in plan.examples_of(step)]
        for e in (0, 1)
    ]
    assert [sorted(e) for e in epochs] == [list(range(11))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total"),
    [(1.0, None, 3), (2.0, None, 6), (0.5, None, 2), (1.34, None, 5), (0.01, None, 1), (2.0, 4, 4), (1.0, 50, 50)],
)
def test_fractions_of_an_epoch_are_rounded_up_to_steps_and_max_steps_wins(
    epochs: float, max_steps: int | None, total: int
) -> None:
    assert make_plan(epochs=epochs, max_steps=max_steps).total_steps == total


def test_a_tenth_of_thirty_steps_is_three_steps() -> None:
    assert make_plan(lengths=np.full(30, 5), batch_size=1, epochs=0.1).total_steps == 3


@pytest.mark.parametrize("capacity", [64, 100, 1000, 10])
def test_bins_change_the_layout_of_a_step_and_not_its_examples(capacity: int) -> None:
    plan = make_plan()
    bins = plan.bins_of(1, capacity)
    assert sorted(i for b in bins for i in b) == sorted(plan.examples_of(1))
    assert all(len(b) == 1 or LENGTHS[b].sum() <= capacity for b in bins)


def test_an_example_longer_than_a_bin_gets_one_to_itself() -> None:
    assert lay_into_bins([8, 0, 9], LENGTHS, 10) == [[8], [0, 9]]


def test_packing_dataset_makes_fewer_steps_of_fuller_bins() -> None:
    lengths = np.full(64, 16)
    packed = make_plan(lengths=lengths, packing="dataset")
    assert make_plan(lengths=lengths).steps_per_epoch == 16
    assert packed.steps_per_epoch == 4
    assert len(packed.examples_of(0)) == 16


def test_the_bins_of_packing_dataset_do_not_depend_on_the_micro_batch() -> None:
    plan = make_plan(packing="dataset", batch_size=2)
    assert sorted(i for b in plan.bins_of(0, 32) for i in b) == sorted(plan.examples_of(0))

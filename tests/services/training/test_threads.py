"""How many torch threads a CPU training takes."""

import pytest

from llamero.training.machine import ONE_THREAD_PARAMETERS, choose_threads, count_cores


@pytest.mark.parametrize(
    ("wanted", "parameters", "threads"),
    [
        (None, ONE_THREAD_PARAMETERS - 1, 1),
        (None, ONE_THREAD_PARAMETERS, count_cores()),
        (3, 1, 3),
        (1, 10**9, 1),
    ],
)
def test_a_small_model_takes_one_thread_unless_it_is_told_otherwise(
    wanted: int | None, parameters: int, threads: int
) -> None:
    assert choose_threads(wanted, parameters) == threads

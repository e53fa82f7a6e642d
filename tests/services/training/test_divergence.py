"""A training that ran away is ended; one that merely stumbles is not."""

import math

import pytest

from llamero.training.divergence import PATIENCE_STEPS, DivergenceGuard
from llamero.training.failures import Diverged

VOCABULARY = 1000
HOPELESS = 3 * math.log(VOCABULARY)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_it_at_once(loss: float) -> None:
    with pytest.raises(Diverged, match=r"loss became .* at step 4"):
        DivergenceGuard(VOCABULARY).check(4, loss)


def test_a_gradient_that_is_no_number_ends_it_before_the_optimizer_acts() -> None:
    with pytest.raises(Diverged, match="gradient's norm became nan at step 4"):
        DivergenceGuard(VOCABULARY).check(4, 2.0, math.nan)


def test_a_loss_far_above_guessing_for_long_ends_it() -> None:
    guard = DivergenceGuard(VOCABULARY)
    guard.check(1, 2.0)
    for step in range(2, PATIENCE_STEPS + 1):
        guard.check(step, HOPELESS)
    with pytest.raises(Diverged, match="guessing at random"):
        guard.check(PATIENCE_STEPS + 1, HOPELESS)


def test_a_single_good_step_is_a_new_chance() -> None:
    guard = DivergenceGuard(VOCABULARY)
    for step in range(1, 4 * PATIENCE_STEPS):
        guard.check(step, 2.0 if step % PATIENCE_STEPS == 0 else HOPELESS)


def test_a_training_that_starts_badly_but_gets_no_worse_goes_on() -> None:
    guard = DivergenceGuard(VOCABULARY)
    for step in range(1, 4 * PATIENCE_STEPS):
        guard.check(step, HOPELESS)

"""The record of a training: short of a point per step only when there are too many, and the same through a checkpoint."""

import json

import pytest

from llamero.spec.results import LossPoint
from llamero.training.journal import MAX_CURVE_POINTS, Journal


def make_point(step: int) -> LossPoint:
    return LossPoint(step=step, loss=float(step), learning_rate=1e-4, grad_norm=2.0, tokens=10, seconds=0.5)


def record(steps: int) -> Journal:
    journal = Journal()
    for step in range(1, steps + 1):
        journal.record(make_point(step), target_tokens=4)
    return journal


def test_a_short_training_keeps_every_step() -> None:
    journal = record(12)
    assert [p.step for p in journal.whole_curve()] == list(range(1, 13))
    assert (journal.tokens, journal.target_tokens, journal.seconds) == (120, 48, 6.0)
    assert journal.tokens_per_second == 20.0
    assert journal.summarize_loss().first == 3.0 and journal.summarize_loss().last == 10.0


def test_a_training_of_two_steps_has_a_first_and_last_loss() -> None:
    assert record(2).summarize_loss().first == record(2).summarize_loss().last == 1.5


def test_a_long_training_keeps_a_thinner_curve_that_loses_no_token() -> None:
    steps = 3 * MAX_CURVE_POINTS + 17
    journal = record(steps)
    curve = journal.whole_curve()
    assert len(curve) <= MAX_CURVE_POINTS and curve[-1].step == steps
    assert sum(p.tokens for p in curve) == 10 * steps
    assert curve[0].loss == pytest.approx(2.5) and curve[0].step == 4


def test_a_journal_goes_through_json_and_on_as_if_nothing_had_happened() -> None:
    whole, first = record(MAX_CURVE_POINTS + 7), record(MAX_CURVE_POINTS - 4)
    resumed = Journal.from_dict(json.loads(json.dumps(first.to_dict())))
    for step in range(MAX_CURVE_POINTS - 3, MAX_CURVE_POINTS + 8):
        resumed.record(make_point(step), target_tokens=4)
    assert resumed == whole

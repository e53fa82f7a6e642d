"""Progress lines: five a second at most, the last step always, and no reader needed."""

import io
import os
from typing import Any

from llamero.spec.progress import Progress
from llamero.training.reporter import Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_steps(count: int, seconds_each: float) -> list[dict[str, Any]]:
    clock, stream = Clock(), io.StringIO()
    reporter = Reporter(stream, clock)
    for step in range(1, count + 1):
        clock.now += seconds_each
        reporter.report_step(step, count, loss=2.0, learning_rate=1e-4, tokens=100)
    events = [Progress.from_line(line) for line in stream.getvalue().splitlines()]
    assert all(e is not None and e.phase == "Training" and e.total == count and e.unit == "steps" for e in events)
    return [e.values or {} for e in events if e]


def test_fast_steps_are_told_of_five_times_a_second_and_the_last_one_always() -> None:
    told = run_steps(1003, 0.01)
    assert len(told) <= 1003 * 0.01 * 5 + 2
    assert told[0]["step"] == 1 and told[-1]["step"] == 1003


def test_slow_steps_are_all_told_of_with_the_rate_of_the_last_seconds() -> None:
    told = run_steps(20, 2.0)
    assert [t["step"] for t in told] == list(range(1, 21))
    assert told[-1] == {"step": 20, "loss": 2.0, "learningRate": 1e-4, "tokensPerSecond": 50.0}


def test_a_reader_that_went_away_does_not_end_the_training() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        reporter = Reporter(stream)
        for step in range(1, 4):
            reporter.report_step(step, 3, 2.0, 1e-4, 100)
        reporter.say("saving")

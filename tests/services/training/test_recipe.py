"""Whole trainings by the real process: what it leaves behind, and what it refuses."""

from collections.abc import Callable
from typing import Any

from llamero.lifecycle.failures import PhaseExit


def test_a_training_leaves_a_whole_adapter_and_its_figures(training: Callable[..., Any]) -> None:
    job = training()
    assert job.run() == PhaseExit.DONE, job.log
    print(job.output, job.log, job.result)

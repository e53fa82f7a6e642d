"""The trainings that data.controls sets beside a run's own, by the real process."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamero.lifecycle.failures import PhaseExit
from llamero.model.adapters import load_adapter
from llamero.model.loading import load_base
from llamero.model.tokens import TokenSet
from llamero.phases.training import TrainingFolders, list_controls, read_training
from llamero.training.loss import measure_loss

from .conftest import write_tokens

Make = Callable[..., Any]


@pytest.fixture
def controls(tmp_path: Path) -> list[dict[str, Any]]:
    """Two other training sets in a data phase's layout, as the configuration names them."""
    arms = tmp_path / "data" / "tokens" / "arms"
    write_tokens(arms / "random" / "part-00000", 12, seed=5)
    write_tokens(arms / "at-10" / "part-00000", 8, seed=6)
    write_tokens(arms / "at-4.5" / "part-00000", 8, seed=6)
    return list_controls(tmp_path / "data")


def test_controls_are_found_by_their_folders(controls: list[dict[str, Any]]) -> None:
    assert [(c["name"], c["threshold"]) for c in controls] == [("random", None), ("at-4.5", 4.5), ("at-10", 10.0)]


def test_each_control_is_trained_by_the_same_recipe_and_measured_on_the_same_held_out_records(
    training: Make, controls: list[dict[str, Any]]
) -> None:
    job = training("run", {"epochs": 2}, controls=controls[:2], measureHeldOut=True)
    assert job.run() == PhaseExit.DONE, job.log
    chosen, random, at = job.result.controls
    assert [(c.kind, c.threshold, c.examples, c.steps) for c in (chosen, at, random)] == [
        ("chosen", None, 30, 16),
        ("threshold", 4.5, 8, 4),
        ("random", None, 12, 6),
    ]
    assert len({c.held_out_loss for c in (chosen, at, random)}) == 3
    base = load_base(Path(job.config["base"]), quantization="nf4", device="cpu", training=True)
    held_out = TokenSet.open([Path(p) for p in job.config["evaluationTokens"]])
    measured = measure_loss(load_adapter(base, job.adapter), held_out, "cpu", 4096, None)
    assert chosen.held_out_loss == pytest.approx(measured, rel=1e-3)


def test_a_run_that_was_interrupted_in_a_control_is_not_finished_and_goes_on_there(
    training: Make, controls: list[dict[str, Any]], tmp_path: Path
) -> None:
    longer = [{**c, "name": f"at-{n}", "threshold": n} for n, c in enumerate([*controls, controls[0]], 1)]
    job = training("run", {"maxSteps": 3}, controls=longer, measureHeldOut=True)
    process = job.start()
    for line in process.stdout:
        if '"control at-3"' in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    assert process.wait(timeout=300) == PhaseExit.INTERRUPTED, job.log
    folders = TrainingFolders(tmp_path / "data", job.checkpoints, job.adapter, tmp_path / "merged")
    assert job.result.controls_pending and read_training(folders) is None
    finished = job.checkpoints / "controls" / "at-1" / "result.json"
    before = finished.stat().st_mtime_ns
    assert job.run() == PhaseExit.DONE, job.log
    assert finished.stat().st_mtime_ns == before
    assert [c.name for c in job.result.controls] == ["chosen", "at-1", "at-2", "at-3", "at-4"]
    assert read_training(folders) is not None

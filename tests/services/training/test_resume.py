"""A training that is cut short goes on where it stood: per-step losses equal those of the unbroken run, bit by bit."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamero.lifecycle.failures import PhaseExit

Make = Callable[..., Any]

STEPS = 40
# Dropout, so that the generators' states matter.
SPEC = {"epochs": STEPS / 8, "lora": {"rank": 4, "dropout": 0.1}, "keepCheckpoints": 3}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, make_training: Make) -> Any:
    """A run that nobody disturbs."""
    job = make_training(tmp_path_factory.mktemp("unbroken"), spec=SPEC)
    assert job.run() == PhaseExit.DONE, job.log
    assert len(job.losses()) == STEPS
    return job


def read_adapter(job: Any) -> dict[str, torch.Tensor]:
    # Cloned: the loaded tensors are a map of the file, which a test may overwrite.
    return {k: t.clone() for k, t in load_file(job.adapter / "adapter_model.safetensors").items()}


def assert_same_training(job: Any, unbroken: Any) -> None:
    assert [p.step for p in job.result.curve] == list(range(1, STEPS + 1))
    assert job.losses() == unbroken.losses()
    assert [p.grad_norm for p in job.result.curve] == [p.grad_norm for p in unbroken.result.curve]
    assert job.result.tokens == unbroken.result.tokens
    ours, theirs = read_adapter(job), read_adapter(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == torch.float32 for k in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_checkpoints_the_last_finished_step_and_the_next_start_goes_on_from_it(
    training: Make, unbroken: Any, number: signal.Signals
) -> None:
    job = training("broken", SPEC)
    assert job.run_until(1, number) == PhaseExit.INTERRUPTED, job.log
    stopped_at = int(job.find_checkpoints()[-1][5:])
    assert 1 <= stopped_at < STEPS
    assert job.failure["class"] == "Interrupted"
    assert f"step {stopped_at}" in job.failure["message"]
    assert not job.adapter.exists()

    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.resumed_from == [stopped_at]
    assert not (job.checkpoints / "failure.json").exists()
    assert_same_training(job, unbroken)


def test_a_killed_training_goes_on_from_its_last_checkpoint(training: Make, stopped: Any, unbroken: Any) -> None:
    job = training("killed", SPEC)
    shutil.copytree(stopped.checkpoints, job.checkpoints)
    last = int(job.find_checkpoints()[-1][5:])
    assert job.run_until(last + 1, signal.SIGKILL) == -signal.SIGKILL
    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.resumed_from[-1] == last
    assert_same_training(job, unbroken)


def test_a_training_killed_before_its_first_checkpoint_starts_anew(training: Make, unbroken: Any) -> None:
    job = training("killed", SPEC)
    assert job.run_until(1, signal.SIGKILL) == -signal.SIGKILL
    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.resumed_from == []
    assert_same_training(job, unbroken)


def cut_weights(checkpoint: Path) -> str:
    file = checkpoint / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "bytes, where its manifest says"


def drop_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "has no manifest.json: it was not written to its end"


def flip_a_byte_of_the_optimizer(checkpoint: Path) -> str:
    file = checkpoint / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return "differs from its manifest's digest"


def cut_manifest(checkpoint: Path) -> str:
    file = checkpoint / "manifest.json"
    file.write_bytes(file.read_bytes()[:50])
    return "can't be read"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, make_training: Make) -> Any:
    """A run that was ended twice and so has two checkpoints."""
    job = make_training(tmp_path_factory.mktemp("stopped"), spec=SPEC)
    for _ in range(2):
        assert job.run_until(1, signal.SIGTERM) == PhaseExit.INTERRUPTED, job.log
    assert len(job.find_checkpoints()) == 2
    return job


@pytest.mark.parametrize("tear", [cut_weights, drop_manifest, flip_a_byte_of_the_optimizer, cut_manifest])
def test_a_torn_checkpoint_is_refused_and_the_one_before_it_used(
    training: Make, stopped: Any, unbroken: Any, tear: Callable[[Path], str]
) -> None:
    job = training("torn", SPEC)
    shutil.copytree(stopped.checkpoints, job.checkpoints)
    *_, before, newest = job.find_checkpoints()
    why = tear(job.checkpoints / newest)

    assert job.run() == PhaseExit.DONE, job.log
    assert "A checkpoint is passed over" in job.log and newest in job.log and why in job.log
    assert job.result.resumed_from[-1] == int(before[5:])
    assert_same_training(job, unbroken)


def test_a_checkpoint_of_another_recipe_is_not_resumed(training: Make, stopped: Any) -> None:
    job = training("other", SPEC | {"maxSteps": 2}, recipeDigest="another recipe")
    shutil.copytree(stopped.checkpoints, job.checkpoints)
    assert job.run() == PhaseExit.DONE, job.log
    assert "is of another training: its recipe differ" in job.log
    assert job.result.resumed_from == [] and job.result.steps == 2


def test_a_finished_training_is_left_alone(training: Make) -> None:
    job = training("finished", {"maxSteps": 3})
    assert job.run() == PhaseExit.DONE, job.log
    before = {
        p: p.stat().st_mtime_ns for p in job.folder.rglob("*") if p.is_file() and p.name not in ("log", "config.json")
    }
    assert job.run() == PhaseExit.DONE
    assert "loading base" not in job.output and "finished before" in job.output
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_training_whose_adapter_was_damaged_saves_it_again_without_a_further_step(training: Make) -> None:
    job = training("damaged", {"maxSteps": 3})
    assert job.run() == PhaseExit.DONE, job.log
    weights, losses = read_adapter(job), job.losses()
    (job.adapter / "adapter_model.safetensors").write_bytes(b"torn")
    assert job.run() == PhaseExit.DONE, job.log
    again = read_adapter(job)
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert job.losses() == losses and job.result.steps == 3


def test_checkpoints_are_kept_to_their_number_and_half_written_ones_go(training: Make, stopped: Any) -> None:
    job = training("kept", SPEC | {"keepCheckpoints": 2})
    shutil.copytree(stopped.checkpoints, job.checkpoints)
    newest = job.find_checkpoints()[-1]
    (job.checkpoints / ".step-00000001.partial").mkdir()
    (job.checkpoints / "step-00000999").mkdir()
    assert job.run() == PhaseExit.DONE, job.log
    assert job.find_checkpoints() == [newest, f"step-{STEPS:08d}"]
    assert not (job.checkpoints / ".step-00000001.partial").exists()


def test_checkpoints_are_written_at_their_interval(training: Make) -> None:
    job = training("interval", {"epochs": 1000, "saveIntervalSeconds": 1})
    assert job.run_until(1, signal.SIGKILL, checkpoints=2) == -signal.SIGKILL
    assert len(job.find_checkpoints()) >= 2


def test_adapters_and_moments_are_fp32_after_a_resume(training: Make, stopped: Any) -> None:
    job = training("dtypes", SPEC)
    shutil.copytree(stopped.checkpoints, job.checkpoints)
    assert job.run_until(1, signal.SIGTERM) == PhaseExit.INTERRUPTED, job.log
    newest = job.checkpoints / job.find_checkpoints()[-1]
    assert {t.dtype for t in load_file(newest / "adapter.safetensors").values()} == {torch.float32}
    state = torch.load(newest / "optimizer.pt", weights_only=True)["state"]
    assert {s[k].dtype for s in state.values() for k in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert json.loads((newest / "state.json").read_text())["journal"]["resumed_from"]

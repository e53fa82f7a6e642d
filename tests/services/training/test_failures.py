"""Every way to fail has its exit code, its class and a sentence that says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamero.lifecycle.failures import PhaseExit
from llamero.model.errors import ModelError, SelfTestError
from llamero.training.config import ConfigError
from llamero.training.failures import DataFailure, Diverged, Interrupted, classify_error

Make = Callable[..., Any]

# Leaves the process little more memory than it has once everything is imported.
SHORT_OF_MEMORY = """
import resource, sys
import llamero.training.__main__ as program, llamero.training.recipe
import bitsandbytes
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000,) * 2)
sys.exit(program.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted("SIGTERM came."), PhaseExit.INTERRUPTED),
        (SelfTestError("documents leak"), PhaseExit.SELF_TEST_FAILED),
        (ModelError("no safetensors"), PhaseExit.BAD_CONFIG),
        (ConfigError("no such field"), PhaseExit.BAD_CONFIG),
        (DataFailure("nothing to train on"), PhaseExit.DATA_ERROR),
        (Diverged("nan"), PhaseExit.DIVERGED),
        (MemoryError(), PhaseExit.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), PhaseExit.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), PhaseExit.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), PhaseExit.OUT_OF_MEMORY),
        (RuntimeError("shapes differ"), PhaseExit.BUG),
        (KeyboardInterrupt(), PhaseExit.BUG),
    ],
)
def test_an_error_stands_for_a_code(error: BaseException, code: PhaseExit) -> None:
    found, message = classify_error(error)
    assert found == code and message


def test_a_lack_of_memory_is_seen_through_the_error_that_it_became() -> None:
    try:
        try:
            raise MemoryError("no room")
        except MemoryError as cause:
            raise RuntimeError("the step failed") from cause
    except RuntimeError as error:
        assert classify_error(error)[0] == PhaseExit.OUT_OF_MEMORY


def test_a_training_that_runs_out_of_memory_says_so(training: Make, tmp_path: Path, random_base: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tmp_path / "wide"
    wide.mkdir()
    for file in random_base.iterdir():
        (wide / file.name).write_bytes(file.read_bytes())
    shape = LlamaConfig.from_pretrained(random_base)
    shape.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16})
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(wide)
    job = training(base=str(wide))
    assert job.run(SHORT_OF_MEMORY) == PhaseExit.OUT_OF_MEMORY, job.log
    assert job.failure["class"] == "OutOfMemory" and "Memory ran out" in job.failure["message"]


def test_a_loss_that_is_no_number_ends_the_training_with_no_checkpoint_of_it(training: Make) -> None:
    first = training("first", {"maxSteps": 1})
    assert first.run() == PhaseExit.DONE, first.log
    weights = load_file(first.adapter / "adapter_model.safetensors")
    broken = {k: t.clone() for k, t in weights.items()}
    next(t for k, t in broken.items() if "lora_B" in k)[0, 0] = float("inf")
    save_file(broken, first.adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    job = training("diverged", {"maxSteps": 5}, initAdapter=str(first.adapter))
    assert job.run() == PhaseExit.DIVERGED, job.log
    assert job.failure == {"class": "Diverged", "message": job.failure["message"]}
    assert "step 1" in job.failure["message"]
    assert job.find_checkpoints() == [] and not job.adapter.exists()


def test_a_learning_rate_that_throws_the_model_out_ends_the_training(training: Make) -> None:
    job = training(spec={"epochs": 100, "learningRate": 1.0, "schedule": "constant", "maxGradNorm": 1000,
                         "lora": {"rank": 1, "alpha": 4096, "targetModules": ["lm_head", "down_proj"]}})  # fmt: skip
    assert job.run() == PhaseExit.DIVERGED, job.log
    assert "guessing at random" in job.failure["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trainTokens": []}, "There is no training example"),
        ({"trainTokens": ["/nowhere/part-00000"]}, "can't be read"),
        ({"spec": {"sequenceLength": 32}}, r"tokens, more than training.sequenceLength 32"),
        ({"spec": {"sequenceLength": 64}, "trainTokens": "silent"}, "no token to train on"),
        ({"spec": {"sequenceLength": 64}, "trainTokens": "foreign"}, "another tokenizer"),
    ],
    ids=["none", "absent", "too-long", "no-answer", "foreign"],
)
def test_tokens_that_cannot_be_trained_on_are_a_data_error(
    training: Make, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    import numpy as np

    from llamero.model.tokens import TokenWriter

    if isinstance(kind := fields.get("trainTokens"), str):
        with TokenWriter(tmp_path / kind) as writer:
            writer.append(np.arange(10) + (1000 if kind == "foreign" else 0), np.full(10, kind == "foreign"), "r")
        fields = fields | {"trainTokens": [str(tmp_path / kind)]}
    job = training(**fields)
    assert job.run() == PhaseExit.DATA_ERROR, job.log
    assert job.failure["class"] == "DataError" and words in job.failure["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speling": 1}, "speling"),
        ({"device": "tpu"}, "device"),
        ({"spec": {"learningRate": 7}}, "spec.learningRate"),
    ],
)
def test_a_configuration_with_mistakes_is_refused_by_name(training: Make, change: dict[str, Any], words: str) -> None:
    job = training()
    job.config |= change
    assert job.run() == PhaseExit.BAD_CONFIG
    assert words in job.log and "Traceback" not in job.log


def test_a_base_that_is_not_there_is_bad_config_with_its_path(training: Make, tmp_path: Path) -> None:
    job = training(base=str(tmp_path / "nowhere"))
    assert job.run() == PhaseExit.BAD_CONFIG
    assert "nowhere" in job.failure["message"]


def test_a_failure_file_holds_class_and_message_alone(training: Make) -> None:
    job = training(trainTokens=[])
    job.run()
    assert set(json.loads((job.checkpoints / "failure.json").read_text())) == {"class", "message"}

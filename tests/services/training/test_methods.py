"""Each way to train, by the real process: it runs, what it leaves can be loaded on the untouched base, and it learnt something."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamero.lifecycle.failures import PhaseExit
from llamero.model.adapters import load_adapter
from llamero.model.loading import load_base
from llamero.model.tokens import TokenSet
from llamero.spec.results import AdapterManifest
from llamero.storage import find_damage
from llamero.training.loss import measure_loss

Make = Callable[..., Any]


def measure_saved(job: Any, folder: Path, method: str) -> float:
    """Loss over the training examples of what was saved, put on a fresh base."""
    base = load_base(
        Path(job.config["base"]), quantization="nf4" if method == "qlora" else None, device="cpu", training=True
    )
    return measure_loss(
        load_adapter(base, folder), TokenSet.open([Path(p) for p in job.config["trainTokens"]]), "cpu", 4096, None
    )


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("qlora", {}),
        ("qlora", {"dropout": 0.1, "rslora": True, "loraPlusRatio": 4}),
        ("qlora", {"init": "eva"}),
        ("lora", {"init": "pissa"}),
        ("lora", {"targetModules": ["q_proj", "v_proj"], "layers": [1]}),
        ("lora", {"useDora": True}),
    ],
    ids=["qlora", "rslora-loraplus", "eva", "pissa", "lora-some-modules", "dora"],
)
def test_a_method_trains_and_its_adapter_stands_on_the_untouched_base(
    training: Make, method: str, lora: dict[str, Any]
) -> None:
    spec = {"method": method, "epochs": 10, "learningRate": 1e-2, "lora": {"rank": 4, "alpha": 16} | lora}
    job = training(method, spec)
    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.loss.last < job.result.loss.first - 0.5
    weights = load_file(job.adapter / "adapter_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    saved = measure_saved(job, job.adapter, method)
    assert saved < job.result.loss.first - 0.5
    config = json.loads((job.adapter / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True and config["base_model_name_or_path"] == "random-llama"


def test_a_training_leaves_a_whole_adapter_and_true_figures(training: Make) -> None:
    job = training(terms=["not for training competitors"], baseRevision="a" * 40)
    assert job.run() == PhaseExit.DONE, job.log
    manifest = AdapterManifest.model_validate_json((job.adapter / "manifest.json").read_bytes())
    assert find_damage(job.adapter, manifest.files) is None
    names = {f.name for f in manifest.files}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert (manifest.base, manifest.base_revision, manifest.base_sha256) == ("random-llama", "a" * 40, "base")
    assert (manifest.recipe_digest, manifest.data_digest, manifest.template) == ("recipe", "data", "base")
    assert manifest.licenses == ["CC-BY-SA-4.0"] and manifest.terms == ["not for training competitors"]
    assert "<|im_end|>" in manifest.stop_tokens

    result, tokens = job.result, TokenSet.open([Path(job.config["trainTokens"][0])])
    assert (result.steps, result.epochs, result.examples) == (16, 2.0, 30)
    assert result.tokens == 2 * tokens.tokens and result.target_tokens == 2 * tokens.target_tokens
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert sum(p.tokens for p in result.curve) == result.tokens
    assert result.trainable_parameters == sum(
        t.numel() for t in load_file(job.adapter / "adapter_model.safetensors").values()
    )
    assert result.total_parameters > result.trainable_parameters
    assert (result.device, result.optimizer, result.method) == ("cpu", "adamw", "qlora")
    assert result.peak_memory_bytes and result.peak_memory_bytes > 100e6
    events = [json.loads(line) for line in job.output.splitlines()]
    assert all(e["llamero"] == "progress" and e["phase"] == "Training" for e in events)
    told = [e["activity"] for e in events]
    assert [a for i, a in enumerate(told) if a not in told[:i]] == [
        "loading tokens", "loading base", "self-test", "attaching adapter", "training", "saving", "done",
    ]  # fmt: skip


def test_packing_dataset_takes_fewer_steps_and_says_so(training: Make) -> None:
    job = training(spec={"packing": "dataset", "epochs": 1, "batchSize": 2})
    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.steps < 15 and job.result.tokens == TokenSet.open([Path(job.config["trainTokens"][0])]).tokens
    assert any("packing dataset" in n and "15 of 2 examples" in n for n in job.result.notes)


def test_a_paged_optimizer_on_cpu_is_replaced_and_noted(training: Make) -> None:
    job = training(spec={"optimizer": "paged-adamw-8bit", "maxSteps": 2})
    assert job.run() == PhaseExit.DONE, job.log
    assert job.result.optimizer == "adamw"
    assert any("paged-adamw-8bit" in n for n in job.result.notes) and "paged-adamw-8bit" in job.log


def test_gradient_checkpointing_changes_no_loss(training: Make) -> None:
    plain, recomputed = (
        training("plain", {"maxSteps": 4}),
        training("recomputed", {"maxSteps": 4, "gradientCheckpointing": True}),
    )
    assert plain.run() == PhaseExit.DONE and recomputed.run() == PhaseExit.DONE, recomputed.log
    assert recomputed.losses() == pytest.approx(plain.losses(), rel=1e-3)


def test_a_training_goes_on_from_an_earlier_adapter(training: Make) -> None:
    first = training("first", {"epochs": 10, "learningRate": 1e-2})
    assert first.run() == PhaseExit.DONE, first.log
    second = training("second", {"maxSteps": 4}, initAdapter=str(first.adapter))
    assert second.run() == PhaseExit.DONE, second.log
    assert second.result.loss.first == pytest.approx(first.result.loss.last, abs=0.5)
    assert second.result.loss.first < first.result.loss.first - 0.5


def test_an_adapter_of_another_shape_is_refused(training: Make) -> None:
    first = training("first", {"maxSteps": 1})
    assert first.run() == PhaseExit.DONE, first.log
    second = training("second", {"maxSteps": 1, "lora": {"rank": 8}}, initAdapter=str(first.adapter))
    assert second.run() == PhaseExit.BAD_CONFIG
    assert second.failure["class"] == "BadConfig" and "rank 4 there, 8 here" in second.failure["message"]


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_merged_export_is_a_plain_model_whose_loss_is_the_adapters(
    training: Make, tmp_path: Path, method: str
) -> None:
    spec = {"method": method, "epochs": 5, "learningRate": 1e-2, "merge": True}
    job = training(method, spec, merged=str(tmp_path / "merged"))
    assert job.run() == PhaseExit.DONE, job.log
    merge = job.result.merge
    assert merge.uri == str(tmp_path / "merged") and merge.change == merge.merged_loss - merge.adapter_loss
    assert abs(merge.change) < 0.02
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert not any("lora" in n or "quant" in n or "absmax" in n for n in weights)
    merged = load_base(tmp_path / "merged", quantization=None, device="cpu", training=True)
    held_out = TokenSet.open([Path(job.config["evaluationTokens"][0])])
    assert measure_loss(merged, held_out, "cpu", 4096, torch.bfloat16) == pytest.approx(merge.merged_loss, abs=1e-6)


def test_new_tokens_are_trained_alone_in_the_embeddings(training: Make) -> None:
    job = training(spec={"maxSteps": 3, "lora": {"rank": 4, "newTokens": ["<|tool|>"]}})
    assert job.run() == PhaseExit.DONE, job.log
    weights = load_file(job.adapter / "adapter_model.safetensors")
    assert sum(t.numel() for n, t in weights.items() if "lora_" not in n) == 2 * 64
    assert "<|tool|>" in (job.adapter / "tokenizer.json").read_text()

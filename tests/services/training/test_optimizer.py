"""The optimiser's groups and the course of its learning rate."""

import pytest
import torch

from llamero.spec.job import TrainingSpec
from llamero.training.optimizer import build_optimizer, build_scheduler, group_parameters, rate_factor


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.Linear(4, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, 4, bias=False)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)


def test_lora_plus_gives_the_b_matrices_a_rate_of_their_own() -> None:
    layer = Layer()
    others, b_matrices = group_parameters(layer.named_parameters(), 1e-4, 16)
    assert others == {"params": [layer.lora_A.weight], "lr": 1e-4}
    assert b_matrices == {"params": [layer.lora_B.weight], "lr": pytest.approx(1.6e-3)}


def test_without_lora_plus_there_is_one_group_and_nothing_frozen_in_it() -> None:
    layer = Layer()
    (group,) = group_parameters(layer.named_parameters(), 1e-4, None)
    assert group["params"] == [layer.lora_A.weight, layer.lora_B.weight]


@pytest.mark.parametrize("wanted", ["paged-adamw", "paged-adamw-8bit"])
def test_a_paged_optimizer_falls_back_on_cpu_and_says_so(wanted: str) -> None:
    optimizer, name, note = build_optimizer(Layer(), TrainingSpec(optimizer=wanted), "cpu")
    assert isinstance(optimizer, torch.optim.AdamW) and name == "adamw"
    assert note is not None and wanted in note and "CUDA" in note


def test_adamw_is_fused_and_needs_no_note() -> None:
    optimizer, name, note = build_optimizer(Layer(), TrainingSpec(weight_decay=0.1), "cpu")
    assert (name, note) == ("adamw", None)
    assert optimizer.defaults["fused"] is True and optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_the_rate_rises_then_falls_by_its_schedule(schedule: str, expected: list[float]) -> None:
    factor = rate_factor(schedule, 0.2, 10)
    assert [factor(step) for step in range(10)] == pytest.approx(expected, abs=1e-4)


def test_no_step_has_a_rate_of_zero() -> None:
    for schedule in ("constant", "linear", "cosine"):
        for total in (1, 2, 7, 100):
            assert all(rate_factor(schedule, 0.03, total)(step) > 0 for step in range(total))


def test_each_group_keeps_its_own_peak() -> None:
    spec = TrainingSpec(learning_rate=1e-3, warmup_fraction=0, schedule="linear", lora={"loraPlusRatio": 4})
    optimizer, _, _ = build_optimizer(Layer(), spec, "cpu")
    scheduler = build_scheduler(optimizer, spec, 4)
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.75e-3, 3e-3])

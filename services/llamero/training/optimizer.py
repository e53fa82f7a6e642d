"""The optimiser and its schedule: groups with their learning rates, and what stands in where a device has no paged memory."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from llamero.spec.job import TrainingSpec

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def group_parameters(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], learning_rate: float, lora_plus_ratio: float | None
) -> list[dict[str, Any]]:
    """Parameter groups of what is trained; with LoRA+ (arXiv:2402.12354) the B matrices learn at `ratio` times the rate."""
    trained = [(n, p) for n, p in named_parameters if p.requires_grad]
    if lora_plus_ratio is None:
        return [{"params": [p for _, p in trained], "lr": learning_rate}]
    b_matrices = [p for n, p in trained if "lora_B" in n or "lora_embedding_B" in n]
    others = [p for n, p in trained if not ("lora_B" in n or "lora_embedding_B" in n)]
    return [
        {"params": others, "lr": learning_rate},
        {"params": b_matrices, "lr": learning_rate * lora_plus_ratio},
    ]


def build_optimizer(
    model: torch.nn.Module, spec: TrainingSpec, device: str
) -> tuple[torch.optim.Optimizer, str, str | None]:
    """The optimiser, its name, and a note where it is not the recipe's."""
    groups = group_parameters(model.named_parameters(), spec.learning_rate, spec.lora.lora_plus_ratio)
    settings = {"betas": BETAS, "eps": EPSILON, "weight_decay": spec.weight_decay}
    wanted = spec.optimizer
    if wanted == "adamw" or not device.startswith("cuda"):
        note = None
        if wanted != "adamw":
            note = f"optimizer {wanted} needs CUDA's paged memory: adamw took its place on {device}"
        return torch.optim.AdamW(groups, fused=True, **settings), "adamw", note
    import bitsandbytes

    paged = {
        "paged-adamw": bitsandbytes.optim.PagedAdamW32bit,
        "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    return paged[wanted](groups, **settings), wanted, None


def rate_factor(schedule: str, warmup_fraction: float, total_steps: int) -> Callable[[int], float]:
    """The learning rate's factor as a function of the optimiser step, counted from 0.

    It rises in equal parts over the first `warmup_fraction` of the steps (rounded up; the first step's factor is above
    zero, so that no step is wasted), and then falls to zero after the last step by a half cosine or in a line, or stays.
    """
    warmup_steps = math.ceil(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def build_scheduler(
    optimizer: torch.optim.Optimizer, spec: TrainingSpec, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule over all groups, each with its own peak."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(spec.schedule, spec.warmup_fraction, total_steps))

"""An optimiser step of the trainer equals the same examples padded into one batch of plain transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llamero.model.adapters import attach_adapter
from llamero.model.loading import load_base
from llamero.model.tokens import TokenSet
from llamero.spec.job import TrainingSpec
from llamero.training.failures import DataFailure
from llamero.training.interruption import Interruption
from llamero.training.journal import Journal
from llamero.training.linear import fuse_adapters
from llamero.training.optimizer import build_optimizer, build_scheduler
from llamero.training.precision import check_dtypes
from llamero.training.reporter import Reporter
from llamero.training.steps import StepPlan
from llamero.training.trainer import BinTrainer, Keeping, StepDataset, load_weights

SPEC = TrainingSpec(batch_size=8, sequence_length=64, epochs=1, lora={"rank": 4, "alpha": 16}, max_grad_norm=1000)


def build_trainer(
    random_base: Path, tokens: Path, folder: Path, capacity: int, spec: TrainingSpec = SPEC
) -> BinTrainer:
    """In fp32 throughout, so that what differs is the layout alone."""
    token_set = TokenSet.open([tokens])
    plan = StepPlan(
        token_set.lengths, spec.batch_size, spec.packing, spec.sequence_length, spec.seed, spec.epochs, spec.max_steps
    )
    base = load_base(random_base, quantization=None, device="cpu", training=True, dtype=torch.float32)
    torch.manual_seed(0)
    model = attach_adapter(base, spec.lora, method="lora")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    fuse_adapters(model, torch.float32, 0)
    optimizer, _, _ = build_optimizer(model, spec, "cpu")
    steps = StepDataset(plan, token_set, capacity, 384)
    return BinTrainer(
        model,
        steps,
        spec,
        optimizer,
        build_scheduler(optimizer, spec, len(steps)),
        device="cpu",
        autocast_dtype=None,
        keeping=Keeping(folder, 3600.0, 2, {}),
        journal=Journal(),
        interruption=Interruption(),
        reporter=Reporter(),
    )


def compute_padded(model: Any, examples: list[tuple[Any, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the examples padded into one batch, by transformers' own attention, mask and loss."""
    longest = max(len(ids) for ids, _ in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    attention_mask = torch.zeros_like(input_ids)
    for row, (ids, mask) in enumerate(examples):
        values = torch.as_tensor(ids.astype("int64"))
        input_ids[row, : len(ids)] = values
        attention_mask[row, : len(ids)] = 1
        labels[row, : len(ids)] = torch.where(torch.as_tensor(mask.astype(bool)), values, -100)
    model.get_base_model().set_attn_implementation("sdpa")
    model.zero_grad()
    loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("capacity", [64, 100, 4096, 16])
def test_loss_and_gradient_of_a_step_equal_the_padded_batchs_to_a_hundred_thousandth(
    random_base: Path, train_tokens: Path, tmp_path: Path, capacity: int
) -> None:
    trainer = build_trainer(random_base, train_tokens, tmp_path, capacity)
    model = trainer.model
    loss = float(trainer.training_step(model, trainer.train_dataset[1]))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    plan = trainer.train_dataset._plan
    token_set = TokenSet.open([train_tokens])
    padded_loss, padded = compute_padded(model, [token_set[i] for i in plan.examples_of(1)])
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    for name, gradient in padded.items():
        assert float((gradients[name] - gradient).norm()) < 1e-5 * float(gradient.norm()), name


def test_the_bins_capacity_does_not_change_what_is_trained(
    random_base: Path, train_tokens: Path, tmp_path: Path
) -> None:
    losses = []
    for capacity in (64, 4096):
        trainer = build_trainer(random_base, train_tokens, tmp_path / str(capacity), capacity)
        trainer.train_from(None)
        losses.append([p.loss for p in trainer.journal.curve])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gradients_are_clipped_to_the_recipes_norm(random_base: Path, train_tokens: Path, tmp_path: Path) -> None:
    trainer = build_trainer(random_base, train_tokens, tmp_path, 4096, SPEC.model_copy(update={"max_grad_norm": 0.01}))
    trainer.training_step(trainer.model, trainer.train_dataset[0])
    before = trainer._clip_grad_norm(trainer.model)
    after = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    assert float(before) > 0.02 and float(after) == pytest.approx(0.01, rel=1e-3)


def test_a_bf16_adapter_is_refused(random_base: Path, train_tokens: Path, tmp_path: Path) -> None:
    trainer = build_trainer(random_base, train_tokens, tmp_path, 4096)
    next(p for p in trainer.model.parameters() if p.requires_grad).data = torch.zeros(4, 64, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"is trained in torch\.bfloat16, where fp32 is needed"):
        trainer.train_from(None)


def test_moments_that_lost_their_precision_are_refused(random_base: Path, train_tokens: Path, tmp_path: Path) -> None:
    trainer = build_trainer(random_base, train_tokens, tmp_path, 4096)
    trainer.train_from(None)
    state = next(iter(trainer.optimizer.state.values()))
    state["exp_avg"] = state["exp_avg"].to(torch.bfloat16)
    with pytest.raises(TypeError, match="the moment exp_avg"):
        check_dtypes(trainer.model, trainer.optimizer)


def test_weights_of_another_adapter_are_refused(random_base: Path, train_tokens: Path, tmp_path: Path) -> None:
    trainer = build_trainer(random_base, train_tokens, tmp_path, 4096)
    with pytest.raises(RuntimeError, match="parameters are not the model's"):
        load_weights(trainer.model, {"other": torch.zeros(1)})


def test_tokens_outside_the_vocabulary_are_refused(train_tokens: Path) -> None:
    token_set = TokenSet.open([train_tokens])
    plan = StepPlan(token_set.lengths, 30, "batch", 64, 0, 1.0, None)
    with pytest.raises(DataFailure, match="prepared with another tokenizer"):
        StepDataset(plan, token_set, 64, vocabulary_size=300)[0]

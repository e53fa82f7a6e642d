"""transformers' Trainer with llamero's own steps: one item of its loader is one optimiser step, laid out in bins.

The loop, the optimiser's turn and gradient clipping are Trainer's; batching, loss, checkpoints, interruption and the record of what was
done are here. Which examples a step takes is `steps.py`'s to say.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from llamero.model.batches import Batch, lay_out
from llamero.model.loss import causal_model, sum_response_loss
from llamero.model.tokens import TokenSet
from llamero.spec.job import TrainingSpec
from llamero.spec.results import LossPoint
from llamero.training.checkpoints import Snapshot, prune_checkpoints, write_checkpoint
from llamero.training.divergence import DivergenceGuard
from llamero.training.failures import DataFailure, Interrupted
from llamero.training.interruption import Interruption
from llamero.training.journal import Journal
from llamero.training.precision import check_dtypes
from llamero.training.randomness import capture_rng, restore_rng
from llamero.training.reporter import Reporter
from llamero.training.steps import StepPlan

log = logging.getLogger(__name__)


class StepDataset(Dataset[list[Batch]]):
    """Optimiser steps as a map-style data set: item i is step i's bins, on the host. Draws nothing at random."""

    def __init__(self, plan: StepPlan, tokens: TokenSet, capacity: int, vocabulary_size: int) -> None:
        self._plan = plan
        self._tokens = tokens
        self._capacity = capacity
        self._vocabulary_size = vocabulary_size

    def __len__(self) -> int:
        return self._plan.total_steps

    def __getitem__(self, step: int) -> list[Batch]:
        batches = [lay_out([self._tokens[i] for i in chosen]) for chosen in self._plan.bins_of(step, self._capacity)]
        largest = max(int(b.input_ids.max()) for b in batches)
        if largest >= self._vocabulary_size:
            raise DataFailure(
                f"The training tokens hold id {largest}, and the base model's vocabulary ends at {self._vocabulary_size - 1}: the data "
                "was prepared with another tokenizer. Prepare it again."
            )
        return batches


@dataclass(frozen=True)
class Keeping:
    """Where and when checkpoints are written, and what training they are of."""

    folder: Path
    interval_seconds: float
    keep: int
    identity: dict[str, str]


class BinTrainer(Trainer):
    """Trainer whose step is the sum of the bins' response losses over all trained tokens of the step.

    That is the loss, and the gradient, of the same examples padded into one batch. `autocast_dtype` None computes in the
    model's own precision.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        steps: StepDataset,
        spec: TrainingSpec,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        *,
        device: str,
        autocast_dtype: torch.dtype | None,
        keeping: Keeping,
        journal: Journal,
        interruption: Interruption,
        reporter: Reporter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(keeping.folder),
            use_cpu=device == "cpu",
            max_steps=len(steps),
            per_device_train_batch_size=1,
            max_grad_norm=spec.max_grad_norm,
            seed=spec.seed,
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
        )
        super().__init__(model=model, args=arguments, train_dataset=steps, optimizers=(optimizer, scheduler))
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self._spec = spec
        self._device = device
        self._autocast_dtype = autocast_dtype
        self._keeping = keeping
        self._interruption = interruption
        self._reporter = reporter
        self._clock = clock
        self._guard = DivergenceGuard(causal_model(model).config.get_text_config().vocab_size)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self.journal = journal
        self._step_loss = 0.0
        self._step_tokens = 0
        self._step_targets = 0
        self._step_started = 0.0
        self._last_saved = 0.0
        self._rng_at_step_start: dict[str, torch.Tensor] = {}
        self._resumed: Snapshot | None = None

    # ---- the training from end to end

    def train_from(self, resumed: tuple[Path, Snapshot] | None) -> None:
        """Train to the end, from a checkpoint if there is one. Raises Interrupted after writing a checkpoint, and Diverged."""
        self._resumed = resumed[1] if resumed else None
        self._last_saved = self._step_started = self._clock()
        self.model.train()
        check_dtypes(self.model, self.optimizer)
        with self._interruption.deferred():
            self._interruption.check()
            try:
                self.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
            except Interrupted as interrupted:
                raise self._save_unfinished(interrupted) from None
            self.save_snapshot()

    def _save_unfinished(self, interrupted: Interrupted) -> Interrupted:
        """Checkpoint the last finished step: what the unfinished one did is dropped, the generators go back to its start."""
        self.model.zero_grad(set_to_none=True)
        if not self.journal.step:
            return Interrupted(f"{interrupted} No step was finished yet: the next attempt starts from the beginning.")
        if self._rng_at_step_start:
            restore_rng(self._rng_at_step_start)
        self.save_snapshot()
        return Interrupted(
            f"{interrupted} A checkpoint of step {self.journal.step} was written; start again to resume."
        )

    # ---- one optimiser step

    def get_train_dataloader(self) -> DataLoader[list[Batch]]:
        """Steps in order; Trainer skips those done before by their index, without reading them."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only_item)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: list[Batch], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward over the step's bins; gradients are of the mean loss over all its trained tokens."""
        self._rng_at_step_start = capture_rng()
        targets = sum(b.targets for b in inputs)
        total = torch.zeros((), device=self._device)
        for batch in inputs:
            self._interruption.check()
            with torch.autocast(
                torch.device(self._device).type, self._autocast_dtype, enabled=self._autocast_dtype is not None
            ):
                loss_sum, _ = sum_response_loss(model, batch.to(self._device))
            loss = loss_sum / targets
            loss.backward()
            total += loss.detach()
        self._interruption.check()
        self._step_loss = float(total)
        self._step_tokens, self._step_targets = sum(b.tokens for b in inputs), targets
        self._guard.check(self.journal.step + 1, self._step_loss)
        return total

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> float:
        norm = float(grad_norm if grad_norm is not None else torch.nn.utils.get_total_norm(self._trained))
        self._guard.check(self.journal.step + 1, self._step_loss, norm)
        return norm

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: float | None,
        model: torch.nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Trainer's place after an optimiser step: record it, report it, and save when it is time."""
        step = self.state.global_step
        if step == self.journal.step:  # called once more at the end of an epoch
            return
        now = self._clock()
        point = LossPoint(
            step=step,
            loss=self._step_loss,
            learning_rate=float(learning_rate or 0.0),
            grad_norm=grad_norm,
            tokens=self._step_tokens,
            seconds=now - self._step_started,
        )
        self._step_started = now
        self.journal.record(point, self._step_targets)
        self._reporter.report_step(step, len(self.train_dataset), point.loss, point.learning_rate, point.tokens)
        if now - self._last_saved >= self._keeping.interval_seconds:
            self.save_snapshot()

    # ---- checkpoints, in llamero's form in place of Trainer's

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_weights(self.model, self._snapshot().weights)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        snapshot = self._snapshot()
        self.optimizer.load_state_dict(snapshot.optimizer)
        self.lr_scheduler.load_state_dict(snapshot.state["scheduler"])
        check_dtypes(self.model, self.optimizer)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing to load: bf16 needs no loss scaling."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_rng(self._snapshot().rng)

    def _snapshot(self) -> Snapshot:
        if self._resumed is None:
            raise RuntimeError("Trainer asked for a checkpoint where none was given")
        return self._resumed

    def save_snapshot(self) -> None:
        """Write a checkpoint of the last finished step and drop those over the number to keep."""
        snapshot = Snapshot(
            step=self.journal.step,
            weights={n: p for n, p in self.model.named_parameters() if p.requires_grad},
            optimizer=self.optimizer.state_dict(),
            rng=capture_rng(),
            state={
                "scheduler": self.lr_scheduler.state_dict(),
                "journal": self.journal.to_dict(),
            },
            trainer_state=dataclasses.asdict(self.state),
        )
        write_checkpoint(self._keeping.folder, snapshot, self._keeping.identity)
        prune_checkpoints(self._keeping.folder, self._keeping.keep, self._keeping.identity)
        self._last_saved = self._clock()
        log.info("checkpoint of step %d written", snapshot.step)


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's weights into the trained parameters; all of them must be there, and no others."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != weights.keys():
        odd = sorted(trained.keys() ^ weights.keys())
        raise RuntimeError(f"the checkpoint's parameters are not the model's: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def _only_item(items: list[list[Batch]]) -> list[Batch]:
    return items[0]

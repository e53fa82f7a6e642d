"""The training of an adapter from tokens to manifest, read top to bottom; each step's details are its own module's.

It runs in a process of its own (`__main__.py`), and may be ended at any moment: started again, it goes on from the last
checkpoint, and a training that is done is left alone.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamero.model.adapters import attach_adapter
from llamero.model.attention import run_self_test
from llamero.model.loading import load_base, load_tokenizer
from llamero.model.tokens import TokenSet
from llamero.spec.results import ControlResult, TrainingResult
from llamero.storage import sha256_file, write_atomically
from llamero.training.checkpoints import find_resumable, read_checkpoint
from llamero.training.config import TrainingConfig
from llamero.training.failures import FAILURE_FILE, DataFailure
from llamero.training.interruption import Interruption
from llamero.training.journal import Journal
from llamero.training.linear import fuse_adapters, unfuse_adapters
from llamero.training.loss import measure_loss
from llamero.training.machine import (
    DEQUANTIZED_SHARE,
    available_memory_bytes,
    choose_bin_tokens,
    choose_device,
    choose_threads,
    keep_freed_memory,
    peak_memory_bytes,
)
from llamero.training.optimizer import build_optimizer, build_scheduler
from llamero.training.precision import choose_compute_dtype
from llamero.training.publish import (
    MAX_MERGE_EXAMPLES,
    find_published,
    publish_adapter,
    publish_merged,
    quantization_of,
)
from llamero.training.reporter import Reporter
from llamero.training.steps import StepPlan
from llamero.training.trainer import BinTrainer, Keeping, StepDataset, load_weights

RESULT_FILE = "result.json"
MAX_HELD_OUT_EXAMPLES = 2000
"""Held-out examples that controls are measured on, the first ones: the same for all of them."""
EVA_STEPS = 16
"""Optimiser steps whose examples the EVA initialisation looks at."""

log = logging.getLogger(__name__)


def train(config: TrainingConfig, interruption: Interruption, reporter: Reporter) -> TrainingResult:
    """Train, publish the adapter, and write result.json; at once where that is done already.

    Raises what `failures.classify_error` knows, and Interrupted after the last finished step is in a checkpoint.
    """
    if (done := find_finished(config)) is not None:
        reporter.say("done", "this training was finished before: its adapter is whole")
        return done
    config.checkpoints.mkdir(parents=True, exist_ok=True)
    (config.checkpoints / FAILURE_FILE).unlink(missing_ok=True)
    spec, notes = config.spec, list[str]()
    device = choose_device(config.device)

    reporter.say("loading tokens")
    tokens, plan = load_tokens(config, notes)

    reporter.say("loading base")
    tokenizer = load_tokenizer(config.base, config.template, spec.lora.new_tokens)
    base, compute_dtype = load_frozen_base(config, device, notes)
    parameters = base.num_parameters()
    bin_tokens = choose_bin_tokens(config.micro_batch_tokens, device, spec.sequence_length, parameters)
    if device == "cpu":
        keep_freed_memory()
        torch.set_num_threads(choose_threads(config.threads, parameters))

    reporter.say("self-test")
    run_self_test(base, device)

    reporter.say("attaching adapter")
    steps = StepDataset(plan, tokens, bin_tokens, len(tokenizer))
    model = attach(config, base, tokenizer, steps, device)
    autocast_dtype = torch.bfloat16 if compute_dtype == torch.bfloat16 else None
    if device == "cpu":
        fuse(model, compute_dtype, notes)
    use_gradient_checkpointing(base, spec.gradient_checkpointing, device)

    optimizer, optimizer_name, fallback = build_optimizer(model, spec, device)
    if fallback:
        notes.append(fallback)
        log.warning("%s", fallback)
    keeping = Keeping(config.checkpoints, spec.save_interval_seconds, spec.keep_checkpoints, identify(config))
    trainer, resumed = build_trainer(
        model, steps, config, optimizer, device, autocast_dtype, keeping, interruption, reporter
    )
    journal = trainer.journal
    reporter.say(
        "training", f"{len(steps):,} steps of {plan.batch_size} {'examples' if plan.packing == 'batch' else 'bins'}"
    )
    if resumed is not None and journal.step >= len(steps):
        # Trainer would train one step more on a finished checkpoint.
        load_weights(model, resumed[1].weights)
    else:
        trainer.train_from(resumed)

    interruption.check()
    reporter.say("saving")
    unfuse_adapters(model)
    publish_adapter(model, tokenizer, config)
    result = build_result(config, plan, journal, model, device, optimizer_name, notes)
    if spec.merge and config.merged is not None:
        reporter.say("merging")
        result = merge(config, result, model, trainer, tokenizer, device, bin_tokens, autocast_dtype)
    if config.measure_held_out:
        reporter.say("measuring on held-out records")
        result = result.model_copy(
            update={"controls": [compare(config, result, model, device, bin_tokens, autocast_dtype)]}
        )
    result = result.model_copy(update={"controls_pending": bool(config.controls)})
    write_atomically(config.checkpoints / RESULT_FILE, json.dumps(result.to_json_dict(), indent=2) + "\n")
    reporter.say("done", f"{result.steps:,} steps in {result.seconds:,.0f} s")
    return result


def find_finished(config: TrainingConfig) -> TrainingResult | None:
    """The result of this very training where it and the adapter are whole."""
    try:
        result = TrainingResult.model_validate_json((config.checkpoints / RESULT_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if config.spec.merge and config.merged is not None and result.merge is None:
        return None
    return result if find_published(config) is not None else None


def load_tokens(config: TrainingConfig, notes: list[str]) -> tuple[TokenSet, StepPlan]:
    """The training tokens and the steps over them. Raises DataFailure where there is nothing, or too long a thing, to train on."""
    spec = config.spec
    try:
        tokens = TokenSet.open(config.train_tokens)
    except (OSError, ValueError) as error:
        raise DataFailure(f"The training tokens can't be read: {error}. Prepare the data again.") from error
    if len(tokens) == 0:
        raise DataFailure("There is no training example: look at what the data phase rejected, and why.")
    longest = int(tokens.lengths.argmax())
    if tokens.lengths[longest] > spec.sequence_length:
        raise DataFailure(
            f"The example of record {tokens.record_id(longest)} has {tokens.lengths[longest]} tokens, more than training.sequenceLength "
            f"{spec.sequence_length}: prepare the data again with this length."
        )
    silent = int((tokens.target_lengths == 0).sum())
    if silent:
        raise DataFailure(
            f"{silent} of {len(tokens)} training examples have no token to train on (no answer within them): "
            "prepare the data again, with data.longRecords chunk or reject."
        )
    plan = StepPlan(
        lengths=np.asarray(tokens.lengths),
        batch_size=spec.batch_size,
        packing=spec.packing,
        sequence_length=spec.sequence_length,
        seed=spec.seed,
        epochs=spec.epochs,
        max_steps=spec.max_steps,
    )
    if plan.packing == "dataset":
        plain = StepPlan(
            plan.lengths, plan.batch_size, "batch", plan.sequence_length, plan.seed, plan.epochs, plan.max_steps
        )
        notes.append(
            f"packing dataset: {plan.steps_per_epoch} optimiser steps an epoch of {plan.batch_size} bins, where packing batch has "
            f"{plain.steps_per_epoch} of {plan.batch_size} examples; {plan.total_steps} steps in all"
        )
    return tokens, plan


def load_frozen_base(config: TrainingConfig, device: str, notes: list[str]) -> tuple[PreTrainedModel, torch.dtype]:
    """The base in NF4 or bf16, fp32 on a CPU that has no bf16 instructions, and the dtype that it computes in."""
    transformers.set_seed(config.spec.seed)
    compute_dtype = choose_compute_dtype(device)
    base = load_base(
        config.base, quantization=quantization_of(config), device=device, training=True, dtype=compute_dtype
    )
    if compute_dtype == torch.float32:
        notes.append("computed in fp32: this CPU has no bf16 instructions, and without them bf16 is the slower one")
    return base, compute_dtype


def attach(
    config: TrainingConfig, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: StepDataset, device: str
) -> PeftModel:
    """The adapter on the base, initialised by the recipe's seed."""
    spec = config.spec
    transformers.set_seed(spec.seed)
    eva = (
        [b.to(device) for i in range(min(EVA_STEPS, len(steps))) for b in steps[i]] if spec.lora.init == "eva" else None
    )
    return attach_adapter(
        base, spec.lora, init_from=config.init_adapter, eva_batches=eva, method=spec.method, tokenizer=tokenizer
    )


def fuse(model: PeftModel, compute_dtype: torch.dtype, notes: list[str]) -> None:
    """The CPU's faster linear layers, and a note where they hold dequantised weights."""
    fusion = fuse_adapters(model, compute_dtype, int(DEQUANTIZED_SHARE * available_memory_bytes()))
    log.info("%d of %d adapter layers are fused", fusion.fused, fusion.layers)
    if fusion.dequantized:
        notes.append(
            f"{fusion.dequantized} frozen NF4 weights are kept dequantised ({fusion.dequantized_bytes / 1e6:.1f} MB): the same "
            "numbers as dequantising them at each use, in less time"
        )


def use_gradient_checkpointing(base: PreTrainedModel, wanted: bool | None, device: str) -> None:
    """Recompute activations in the backward pass where asked for, by default on CUDA."""
    if wanted if wanted is not None else device.startswith("cuda"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def identify(config: TrainingConfig) -> dict[str, str]:
    """What makes a checkpoint one of this training."""
    identity = {"recipe": config.recipe_digest, "data": config.data_digest, "base": config.base_digest}
    if config.init_adapter is not None:
        weights = config.init_adapter / "adapter_model.safetensors"
        identity["initial adapter"] = sha256_file(weights) if weights.is_file() else ""
    return identity


def build_trainer(
    model: PeftModel,
    steps: StepDataset,
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer,
    device: str,
    autocast_dtype: torch.dtype | None,
    keeping: Keeping,
    interruption: Interruption,
    reporter: Reporter,
) -> tuple[BinTrainer, Any]:
    """The trainer, and the checkpoint that it goes on from (its folder and content) or None."""
    found = find_resumable(keeping.folder, keeping.identity)
    resumed = (found, read_checkpoint(found, device)) if found is not None else None
    journal = Journal.from_dict(resumed[1].state["journal"]) if resumed else Journal()
    if resumed:
        journal.resumed_from.append(journal.step)
        log.info("resuming from %s", found)
        reporter.say("resuming", f"from step {journal.step:,}")
    trainer = BinTrainer(
        model,
        steps,
        config.spec,
        optimizer,
        build_scheduler(optimizer, config.spec, len(steps)),
        device=device,
        autocast_dtype=autocast_dtype,
        keeping=keeping,
        journal=journal,
        interruption=interruption,
        reporter=reporter,
    )
    return trainer, resumed


def build_result(
    config: TrainingConfig,
    plan: StepPlan,
    journal: Journal,
    model: PeftModel,
    device: str,
    optimizer_name: str,
    notes: list[str],
) -> TrainingResult:
    """result.json's content, the merge aside."""
    trainable, total = model.get_nb_trainable_parameters()
    return TrainingResult(
        method=config.spec.method,
        steps=journal.step,
        epochs=journal.step / plan.steps_per_epoch,
        examples=len(plan.lengths),
        tokens=journal.tokens,
        target_tokens=journal.target_tokens,
        tokens_per_second=journal.tokens_per_second,
        seconds=journal.seconds,
        loss=journal.summarize_loss(),
        curve=journal.whole_curve(),
        resumed_from=journal.resumed_from,
        trainable_parameters=trainable,
        total_parameters=total,
        peak_memory_bytes=peak_memory_bytes(device),
        device=device if device == "cpu" else torch.cuda.get_device_name(),
        attention=str(model.get_base_model().config._attn_implementation),
        optimizer=optimizer_name,
        notes=notes,
    )


def compare(
    config: TrainingConfig,
    result: TrainingResult,
    model: PeftModel,
    device: str,
    bin_tokens: int,
    autocast_dtype: torch.dtype | None,
) -> ControlResult:
    """This training as one of those that are set side by side, with its loss on the held-out records."""
    held_out = TokenSet.open(config.evaluation_tokens)
    loss = (
        measure_loss(model, held_out, device, bin_tokens, autocast_dtype, MAX_HELD_OUT_EXAMPLES)
        if len(held_out) and held_out.target_tokens
        else None
    )
    return ControlResult(
        name="chosen",
        kind="chosen",
        examples=result.examples,
        tokens=result.tokens,
        steps=result.steps,
        loss=result.loss,
        held_out_loss=loss,
        seconds=round(result.seconds, 3),
    )


def merge(
    config: TrainingConfig,
    result: TrainingResult,
    model: PeftModel,
    trainer: BinTrainer,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    bin_tokens: int,
    autocast_dtype: torch.dtype | None,
) -> TrainingResult:
    """The result with the merged export's figures; the trained model is let go of before the other is loaded."""
    held_out = TokenSet.open(config.evaluation_tokens)
    adapter_loss = None
    if len(held_out) and held_out.target_tokens:
        adapter_loss = measure_loss(model, held_out, device, bin_tokens, autocast_dtype, MAX_MERGE_EXAMPLES)
    merged = publish_merged(
        config,
        Path(str(config.merged)),
        tokenizer,
        adapter_loss,
        held_out if adapter_loss is not None else None,
        device=device,
        bin_tokens=bin_tokens,
        autocast_dtype=autocast_dtype,
    )
    return result.model_copy(update={"merge": merged})

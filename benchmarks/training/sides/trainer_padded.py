"""transformers.Trainer + PEFT + bitsandbytes, each batch padded to its longest example: what most QLoRA scripts do."""

from typing import Any

from measurement import Example, Figures, Job, build_step_clock, read_examples, run_side
from recipe import build_lora, load_quantized, training_arguments


def measure(job: Job) -> Figures:
    return train(job, read_examples(job), notes=[])


def train(job: Job, examples: list[Example], notes: list[str]) -> Figures:
    """Train on the examples in their order, `batch_size` a step."""
    from peft import get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    set_seed(job.seed)
    model = get_peft_model(load_quantized(job), build_lora(job))
    if job.gradient_checkpointing:
        model.enable_input_require_grads()
    clock = build_step_clock(job, job.warmup_steps)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **training_arguments(job, job.warmup_steps + job.steps, job.batch_size),
            train_sampling_strategy="sequential",
        ),
        train_dataset=build_rows(examples),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job.model), padding=True),
        callbacks=[clock],
    )
    trainer.train()
    return clock.summarise(("transformers", "peft", "bitsandbytes", "accelerate"), notes)


def build_rows(examples: list[Example]) -> list[dict[str, Any]]:
    return [{"input_ids": e.input_ids, "labels": e.labels, "attention_mask": [1] * len(e.input_ids)} for e in examples]


if __name__ == "__main__":
    run_side(measure)

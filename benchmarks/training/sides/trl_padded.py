"""TRL's SFTTrainer without packing, QLoRA as its documentation gives it: a quantised model and a peft_config."""

from measurement import Example, Figures, Job, build_step_clock, read_examples, run_side
from recipe import build_lora, load_quantized, training_arguments

PACKAGES = ("trl", "transformers", "peft", "bitsandbytes", "accelerate")
ADAPTER_NOTE = "TRL keeps the adapter of a quantised model in bf16 (its default)"


def measure(job: Job) -> Figures:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock = build_step_clock(job, job.warmup_steps)
    arguments = training_arguments(job, job.warmup_steps + job.steps, job.batch_size)
    trainer = SFTTrainer(
        model=load_quantized(job),
        args=SFTConfig(
            **arguments, max_length=job.sequence_length, packing=False, train_sampling_strategy="sequential"
        ),
        train_dataset=build_dataset(read_examples(job)),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=build_lora(job),
        callbacks=[clock],
    )
    trainer.train()
    return clock.summarise(PACKAGES, [ADAPTER_NOTE])


def build_dataset(examples: list[Example]):  # type: ignore[no-untyped-def]
    """A tokenised data set with labels, which SFTTrainer takes as it is."""
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})


if __name__ == "__main__":
    run_side(measure)

"""TRL's SFTTrainer with its packing (best-fit decreasing, position ids restarting at each document).

A bin a forward pass, accumulated to about the tokens of a padded batch: without flash-attention's varlen kernels the documents are
kept apart by a dense mask over the whole row, and TRL lays all bins of a micro-batch into one row, so that more bins a pass only
cost more.
"""

from measurement import Figures, Job, bins_per_step, build_step_clock, packed_steps, read_examples, run_side
from recipe import build_lora, load_quantized, training_arguments
from trl_padded import ADAPTER_NOTE, PACKAGES, build_dataset


def measure(job: Job) -> Figures:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer, pack_dataset

    examples = read_examples(job)
    dataset = build_dataset(examples)
    accumulation = bins_per_step(job, examples)
    bins = len(pack_dataset(dataset, job.sequence_length, "bfd"))
    total_steps, warmup_steps = packed_steps(job, bins, accumulation)
    clock = build_step_clock(job, warmup_steps)
    trainer = SFTTrainer(
        model=load_quantized(job),
        args=SFTConfig(
            **training_arguments(job, total_steps, batch_size=1, accumulation=accumulation),
            max_length=job.sequence_length,
            packing=True,
            packing_strategy="bfd",
        ),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=build_lora(job),
        callbacks=[clock],
    )
    trainer.train()
    return clock.summarise(PACKAGES, [ADAPTER_NOTE, f"{bins} bins, {accumulation} a step"])


if __name__ == "__main__":
    run_side(measure)

"""LLaMA-Factory's supervised fine-tuning with `neat_packing`, its packing that keeps documents apart.

Its own `run_exp` trains, on bins that its own knapsack fills, with its own collator and model patches; only the tokens are given
(through its `tokenized_path`), so that no side tokenises otherwise. Gradient checkpointing, on by default there, follows the job.
"""

from pathlib import Path
from typing import Any

from measurement import Example, Figures, Job, bins_per_step, build_step_clock, packed_steps, read_examples, run_side
from recipe import training_arguments


def measure(job: Job) -> Figures:
    return train(job, neat_packing=True)


def train(job: Job, neat_packing: bool) -> Figures:
    from llamafactory.train.tuner import run_exp

    examples = read_examples(job)
    tokenized = Path(job.output) / "tokenized"
    bins = pack(job, examples, tokenized, neat_packing)
    batch_bins = bins_per_step(job, examples)
    total_steps, warmup_steps = packed_steps(job, bins, batch_bins)
    clock = build_step_clock(job, warmup_steps)
    run_exp(build_arguments(job, total_steps, batch_bins, tokenized, neat_packing), callbacks=[clock])
    notes = [f"{bins} bins, {batch_bins} a step", f"neat_packing {neat_packing}"]
    return clock.summarise(("llamafactory", "transformers", "peft", "bitsandbytes", "accelerate"), notes)


def build_arguments(job: Job, total_steps: int, batch_bins: int, tokenized: Path, neat_packing: bool) -> dict[str, Any]:
    return {
        **training_arguments(job, total_steps, batch_bins),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "model_name_or_path": job.model,
        "quantization_bit": 4,
        "quantization_method": "bnb",
        "quantization_type": "nf4",
        "double_quantization": True,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": not job.gradient_checkpointing,
        "template": "empty",
        "dataset": "benchmark",
        "tokenized_path": str(tokenized),
        "cutoff_len": job.sequence_length,
        "packing": True,
        "neat_packing": neat_packing,
    }


def pack(job: Job, examples: list[Example], folder: Path, neat_packing: bool) -> int:
    """Fill bins of `sequence_length` by LLaMA-Factory's own processor and save them; returns how many there are."""
    from types import SimpleNamespace

    from datasets import Dataset, DatasetDict
    from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor

    class GivenTokens(PackedSupervisedDatasetProcessor):
        """The processor, but for its tokenising: an example's number stands where its system prompt would."""

        def _encode_data_example(self, prompt: Any, response: Any, system: int, *media: Any, **more: Any) -> Any:
            return list(examples[system].input_ids), examples[system].labels

    count = len(examples)
    columns: dict[str, list[Any]] = {
        "_prompt": [[{}]] * count,
        "_response": [[{}]] * count,
        "_system": list(range(count)),
        **{name: [None] * count for name in ("_tools", "_images", "_videos", "_audios")},
    }
    # One less than the row's length, as its own arguments do, which then pad to the row's length.
    options = SimpleNamespace(cutoff_len=job.sequence_length - 1, neat_packing=neat_packing)
    tokenizer = SimpleNamespace(pad_token_id=job.pad_token_id)
    processor = GivenTokens(template=None, tokenizer=tokenizer, processor=None, data_args=options)
    rows = processor.preprocess_dataset(columns)
    DatasetDict({"train": Dataset.from_dict(dict(rows))}).save_to_disk(str(folder))
    return len(rows["input_ids"])


if __name__ == "__main__":
    run_side(measure)

"""The padded Trainer with its batches grouped by length, as `group_by_length` does.

The order comes from transformers' own function with its own constant (megabatches of 50 batches, sorted within), so that a run of a
few steps meets what a long run meets: with the option itself a small data set gets small, worse megabatches.
"""

from measurement import Figures, Job, read_examples, run_side
from trainer_padded import train

MEGABATCH_BATCHES = 50


def measure(job: Job) -> Figures:
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    examples = read_examples(job)
    warmup, measured = examples[: job.warmup_examples], examples[job.warmup_examples :]
    order = get_length_grouped_indices(
        [len(example.input_ids) for example in measured],
        job.batch_size,
        mega_batch_mult=MEGABATCH_BATCHES,
        generator=torch.Generator().manual_seed(job.seed),
    )
    note = f"grouped by length in megabatches of {MEGABATCH_BATCHES} batches"
    return train(job, warmup + [measured[index] for index in order], [note])


if __name__ == "__main__":
    run_side(measure)

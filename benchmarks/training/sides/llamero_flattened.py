"""llamero's own training: `python -m llamero.training CONFIG.json`, the very module that a run starts, observed from its progress.

It runs inside this process so that its processor time and memory can be read; the clocks are read whenever it tells of a
finished step. Which tokens those steps took follows from the recipe's order of examples, and is checked against the result.
"""

import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

from measurement import Example, Figures, Job, Reading, read_clocks, read_examples, run_side, summarise


class StepLines(io.TextIOBase):
    """Standard output that reads the clocks at each progress line of a finished step, and passes everything on."""

    def __init__(self, job: Job, tokens_after: list[tuple[int, int]]) -> None:
        self.job = job
        self.tokens_after = tokens_after
        self.readings: list[Reading] = []
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.observe(line)
        return sys.__stdout__.write(text)

    def flush(self) -> None:
        sys.__stdout__.flush()

    def observe(self, line: str) -> None:
        from llamero.spec.progress import Progress

        progress = Progress.from_line(line)
        step = (progress.values or {}).get("step") if progress else None
        if step is None or (self.readings and step <= self.readings[-1].step):
            return
        tokens, target_tokens = self.tokens_after[step]
        self.readings.append(read_clocks(step, tokens, target_tokens, self.job.device))


def measure(job: Job) -> Figures:
    examples = read_examples(job)
    folder = Path(job.output)
    config = write_config(job, examples, folder)
    lines = StepLines(job, count_tokens(job, examples))
    run_training(config, lines)
    result = json.loads((folder / "checkpoints" / "result.json").read_text())
    if result["tokens"] != lines.tokens_after[-1][0]:
        raise ValueError(f"llamero trained on {result['tokens']} tokens where {lines.tokens_after[-1][0]} were given")
    first = next(reading for reading in lines.readings if reading.step >= job.warmup_steps)
    losses = [point["loss"] for point in result["curve"]]
    notes = [f"attention {result['attention']}", *result["notes"]]
    return summarise(job, first, lines.readings[-1], losses, ("transformers", "peft", "bitsandbytes"), notes)


def count_tokens(job: Job, examples: list[Example]) -> list[tuple[int, int]]:
    """(tokens, target tokens) trained on after step 0, 1, 2, ...: one epoch in llamero's own order, a batch a step."""
    from llamero.model.batches import epoch_order

    order = epoch_order(len(examples), job.seed, 0)
    totals = [(0, 0)]
    for first in range(0, len(order), job.batch_size):
        batch = [examples[int(index)] for index in order[first : first + job.batch_size]]
        tokens, target_tokens = totals[-1]
        totals.append((tokens + sum(len(e.input_ids) for e in batch), target_tokens + sum(sum(e.mask) for e in batch)))
    return totals


def write_config(job: Job, examples: list[Example], folder: Path) -> Path:
    """The training's configuration for the job's recipe, and its tokens where it says."""
    from llamero.model.loading import base_digest
    from llamero.model.tokens import TokenWriter
    from llamero.spec.digest import digest_json
    from llamero.spec.job import TrainingSpec

    tokens = folder / "tokens" / "part-00000"
    with TokenWriter(tokens) as writer:
        for index, example in enumerate(examples):
            writer.append(example.input_ids, example.mask, f"{index:08x}")
    spec: dict[str, Any] = {
        "method": "qlora",
        "lora": {"rank": job.rank, "alpha": job.alpha},
        "epochs": 1,
        "maxSteps": job.warmup_steps + job.steps,
        "learningRate": job.learning_rate,
        "batchSize": job.batch_size,
        "sequenceLength": job.sequence_length,
        "gradientCheckpointing": job.gradient_checkpointing,
        # The peers save nothing while they are measured, so neither does llamero.
        "saveIntervalSeconds": 86_400,
        "seed": job.seed,
    }
    config = {
        "base": job.model,
        "spec": spec,
        "trainTokens": [str(tokens)],
        "checkpoints": str(folder / "checkpoints"),
        "adapter": str(folder / "adapter"),
        "recipeDigest": digest_json(TrainingSpec.model_validate(spec).to_json_dict()),
        "dataDigest": digest_json([len(example.input_ids) for example in examples]),
        "baseDigest": base_digest(Path(job.model)),
        "baseName": job.model,
        "device": job.device,
        "threads": job.threads,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def run_training(config: Path, lines: StepLines) -> None:
    """`python -m llamero.training CONFIG.json` in this process. Raises RuntimeError where it ends with another code than 0."""
    arguments, stdout = sys.argv, sys.stdout
    sys.argv, sys.stdout = ["llamero.training", str(config)], lines
    try:
        runpy.run_module("llamero.training", run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv, sys.stdout = arguments, stdout
    if code != 0:
        raise RuntimeError(f"python -m llamero.training ended with code {code}")


if __name__ == "__main__":
    run_side(measure)

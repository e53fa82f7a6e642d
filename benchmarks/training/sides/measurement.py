"""What every side shares: the job it is given, the examples, the clock, and the figures it hands back.

Knows no trainer's options: those stand in each side's own file. It runs in every side's environment, so it needs the standard
library and torch alone.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Job:
    """One measurement: the same for all sides but for `side` and `output`. `run.py` writes it as JSON.

    `data` is JSONL, one example a line: `input_ids` and `mask` (1 = trained). The first `warmup_steps * batch_size` examples are
    the warm-up's; a side that keeps the order trains on them first. `sequence_length` in tokens, no example is longer.
    """

    side: str
    device: str
    model: str
    data: str
    output: str
    batch_size: int
    steps: int
    warmup_steps: int
    sequence_length: int
    rank: int
    alpha: float
    learning_rate: float
    seed: int
    threads: int
    gradient_checkpointing: bool
    pad_token_id: int

    @property
    def warmup_examples(self) -> int:
        return self.warmup_steps * self.batch_size

    @classmethod
    def read(cls, path: Path) -> "Job":
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Example:
    """One tokenised conversation; `mask` is 1 where the token is trained on."""

    input_ids: list[int]
    mask: list[int]

    @property
    def labels(self) -> list[int]:
        return [token if trained else IGNORED_LABEL for token, trained in zip(self.input_ids, self.mask, strict=True)]


def read_examples(job: Job) -> list[Example]:
    with Path(job.data).open() as lines:
        return [Example(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class Reading:
    """The clocks after an optimiser step. Tokens are real ones (no padding) since the start; seconds are since any fixed moment."""

    step: int
    tokens: int
    target_tokens: int
    wall_seconds: float
    cpu_seconds: float


@dataclass
class Figures:
    """What a side reports: the steps after warm-up only; start-up, tokenising, packing and saving are outside.

    `tokens` counts each example's own tokens, never padding; `target_tokens` those that are trained on. `cpu_seconds` is user and
    system time of the process, `peak_rss_bytes` its largest resident memory over its whole life.
    """

    side: str
    steps: int
    tokens: int
    target_tokens: int
    wall_seconds: float
    cpu_seconds: float
    losses: list[float]
    peak_rss_bytes: int
    peak_device_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_clocks(step: int, tokens: int, target_tokens: int, device: str) -> Reading:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Reading(step, tokens, target_tokens, time.perf_counter(), usage.ru_utime + usage.ru_stime)


def summarise(
    job: Job, first: Reading, last: Reading, losses: list[float], packages: tuple[str, ...], notes: list[str]
) -> Figures:
    """The figures between two readings. Raises ValueError when no step lies between them."""
    if last.step <= first.step:
        raise ValueError(f"{job.side}: no step was measured (first reading at {first.step}, last at {last.step})")
    return Figures(
        side=job.side,
        steps=last.step - first.step,
        tokens=last.tokens - first.tokens,
        target_tokens=last.target_tokens - first.target_tokens,
        wall_seconds=last.wall_seconds - first.wall_seconds,
        cpu_seconds=last.cpu_seconds - first.cpu_seconds,
        losses=losses,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_device_bytes=peak_device_bytes(job.device),
        versions={name: importlib.metadata.version(name) for name in ("torch", *packages)},
        notes=notes,
    )


def peak_device_bytes(device: str) -> int | None:
    if device != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated())


def prepare_process(job: Job) -> None:
    """The same conditions for every side: threads, and no look at any model hub."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(job.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(job.threads)


def run_side(measure: Callable[[Job], Figures]) -> None:
    """Read the job named on the command line, measure, write `figures.json` into the job's output folder."""
    job = Job.read(Path(sys.argv[1]))
    prepare_process(job)
    figures = measure(job)
    (Path(job.output) / "figures.json").write_text(json.dumps(asdict(figures)))


def build_step_clock(job: Job, warmup_steps: int) -> Any:
    """A TrainerCallback that counts what the model is really given and reads the clocks after each optimiser step.

    Tokens are counted at the model's door, so that every trainer is counted alike, whatever its collator did: all ids that are not
    the pad token, and all labels that are not ignored. `summarise()` gives the figures of the steps after `warmup_steps`.
    """
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        def __init__(self) -> None:
            self.readings: list[Reading] = []
            self.losses: list[float] = []
            self.tokens = 0
            self.target_tokens = 0

        def count(self, module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.tokens += int((named["input_ids"] != job.pad_token_id).sum())
            self.target_tokens += int((named["labels"] != IGNORED_LABEL).sum())

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.readings.append(read_clocks(state.global_step, self.tokens, self.target_tokens, job.device))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(float(logs["loss"]))

        def summarise(self, packages: tuple[str, ...], notes: list[str]) -> Figures:
            first = next((r for r in self.readings if r.step == warmup_steps), self.readings[0])
            return summarise(job, first, self.readings[-1], self.losses, packages, notes)

    return StepClock()


def packed_steps(job: Job, bins: int, bins_per_step: int) -> tuple[int, int]:
    """(all steps, warm-up steps) of a packed side that makes `bins` bins of the job's examples: one pass over the same data."""
    total = max(2, bins // bins_per_step)
    warmup = round(total * job.warmup_steps / (job.warmup_steps + job.steps))
    return total, min(max(1, warmup), total - 1)


def bins_per_step(job: Job, examples: list[Example]) -> int:
    """How many bins of a packed side hold about the tokens of `batch_size` examples."""
    tokens = sum(len(example.input_ids) for example in examples) / len(examples)
    return max(1, round(job.batch_size * tokens / job.sequence_length))

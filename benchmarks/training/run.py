"""Measure llamero's training against its peers: same model, data, batch and recipe, one run, tokens a second as ratios.

Prepares the inputs, runs each side as a process in its own environment, interleaved (A, B, C, A, B, C, ...), prints the table of
medians and, as its last line, the marks as JSON. What a side does stands in sides/<side>.py; how tokens are counted in README.md.

    python benchmarks/training/run.py                                      # CPU, tiny model, all sides
    python benchmarks/training/run.py --quick                              # a minute: llamero and the padded Trainer, no figures to quote
    python benchmarks/training/run.py --device cuda --model-size 1b        # the same on a GPU with a random Llama of 1.2B parameters
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
from prepare import Inputs, prepare
from report import judge, marks_line, render_table, summarise_sides

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "sides"))
from measurement import THREAD_VARIABLES, Job  # noqa: E402

# Which environment each side runs in; the order is that of the rounds and of the table.
SIDES = {
    "llamero_flattened": "main",
    "trainer_padded": "main",
    "trainer_grouped": "main",
    "trl_padded": "trl",
    "trl_packed": "trl",
    "llamafactory_packed": "llamafactory",
}
QUICK_SIDES = ("llamero_flattened", "trainer_padded")
# The curve's points beside the marked one: how cost grows with the batch, and with the length of a row.
CURVE_BATCH_SIZES = (2, 32)
CURVE_SEQUENCE_LENGTHS = (512, 2048)
SIDE_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Plan:
    """One comparison: the shape of the jobs and which sides take part."""

    sides: tuple[str, ...]
    batch_size: int
    sequence_length: int
    steps: int
    warmup_steps: int
    repeats: int

    @property
    def examples(self) -> int:
        return (self.steps + self.warmup_steps) * self.batch_size


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {name: find_python(name) for name in {SIDES[side] for side in options.sides}}
    plans = build_plans(options)
    inputs = prepare_inputs(options, plans, folder)
    print(describe(options, inputs[options.sequence_length]), flush=True)

    everything: list[dict[str, Any]] = []
    summaries_by_plan = []
    for plan in plans:
        figures = measure_plan(options, plan, inputs[plan.sequence_length], folder, pythons)
        summaries = summarise_sides(figures)
        summaries_by_plan.append((plan, summaries))
        everything.append({"plan": asdict(plan), "figures": figures})
        print(f"\n{describe_plan(plan, inputs[plan.sequence_length])}\n\n{render_table(summaries)}", flush=True)
    if options.output:
        Path(options.output).write_text(json.dumps({"options": vars(options), "measured": everything}, indent=1))

    main_plan, main_summaries = summaries_by_plan[0]
    is_marked = (options.device, options.model_size, options.batch_size) == ("cpu", "tiny", 8) and not options.quick
    print(marks_line(judge(main_summaries, main_plan.sides) if is_marked else {}))
    failed = any(len(summaries) < len(plan.sides) for plan, summaries in summaries_by_plan)
    return 1 if failed else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model-size", choices=["tiny", "1b"], default="tiny")
    parser.add_argument("--sides", default=",".join(SIDES), help="a comma-separated choice of %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="examples an optimiser step")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps that are measured")
    parser.add_argument("--warmup-steps", type=int, default=6, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sequence-length", type=int, default=1024, help="tokens; longer records are left out for all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of every side")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for all sides; by default for none")
    parser.add_argument("--curve", action="store_true", help="also other batch sizes and sequence lengths, once each")
    parser.add_argument("--quick", action="store_true", help="a short run of llamero and the padded Trainer")
    parser.add_argument(
        "--folder", default=str(environments.cache_folder() / "bench-training"), help="for inputs and logs"
    )
    parser.add_argument("--output", help="write all figures to this JSON file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sides = ",".join(QUICK_SIDES)
        options.steps, options.warmup_steps, options.repeats = 2, 1, 1
        options.sequence_length, options.curve = 256, False
    options.sides = tuple(side.strip() for side in options.sides.split(",") if side.strip())
    unknown = [side for side in options.sides if side not in SIDES]
    if unknown:
        parser.error(f"unknown side {unknown[0]!r}; there are: {', '.join(SIDES)}")
    return options


def build_plans(options: argparse.Namespace) -> list[Plan]:
    """The marked comparison first, then the curve's points, each over about the same number of examples."""
    sides, batch_size, length = options.sides, options.batch_size, options.sequence_length
    plans = [Plan(sides, batch_size, length, options.steps, options.warmup_steps, options.repeats)]
    if not options.curve:
        return plans
    for size in CURVE_BATCH_SIZES:
        steps = max(2, options.steps * batch_size // size)
        plans.append(Plan(sides, size, length, steps, max(1, options.warmup_steps * batch_size // size), 1))
    for other in CURVE_SEQUENCE_LENGTHS:
        plans.append(Plan(sides, batch_size, other, options.steps, options.warmup_steps, 1))
    return [plans[0], *(plan for plan in plans[1:] if (plan.batch_size, plan.sequence_length) != (batch_size, length))]


def prepare_inputs(options: argparse.Namespace, plans: Sequence[Plan], folder: Path) -> dict[int, Inputs]:
    """The inputs by sequence length, with examples enough for the longest plan of that length."""
    most: dict[int, int] = {}
    for plan in plans:
        most[plan.sequence_length] = max(plan.examples, most.get(plan.sequence_length, 0))
    return {length: prepare(options.model_size, folder, count, length, options.seed) for length, count in most.items()}


def find_python(environment: str) -> Path:
    return environments.main_python() if environment == "main" else environments.ensure_environment(environment)


def measure_plan(
    options: argparse.Namespace, plan: Plan, inputs: Inputs, folder: Path, pythons: dict[str, Path]
) -> dict[str, list[dict[str, Any]]]:
    """All rounds of a plan: every side once a round, so that a slow spell of the machine hits all alike."""
    figures: dict[str, list[dict[str, Any]]] = {side: [] for side in plan.sides}
    data = take_examples(inputs.data, plan.examples)
    for number in range(plan.repeats):
        for side in plan.sides:
            output = folder / "runs" / f"batch{plan.batch_size}-length{plan.sequence_length}-{side}-{number}"
            job = build_job(options, plan, inputs, data, side, output)
            result = run_side(job, pythons[SIDES[side]], output)
            if result is not None:
                figures[side].append(result)
                seconds = result["cpu_seconds"] if options.device == "cpu" else result["wall_seconds"]
                print(
                    f"  round {number + 1} {side}: {result['tokens'] / seconds:,.0f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
    return figures


def take_examples(data: Path, count: int) -> Path:
    lines = data.read_text().splitlines(keepends=True)
    taken = data.with_name(f"{data.stem}-first-{count}.jsonl")
    taken.write_text("".join(lines[:count]))
    return taken


def build_job(options: argparse.Namespace, plan: Plan, inputs: Inputs, data: Path, side: str, output: Path) -> Job:
    return Job(
        side=side,
        device=options.device,
        model=str(inputs.model),
        data=str(data),
        output=str(output),
        batch_size=plan.batch_size,
        steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        sequence_length=plan.sequence_length,
        rank=options.rank,
        alpha=options.alpha,
        learning_rate=options.learning_rate,
        seed=options.seed,
        threads=options.threads,
        gradient_checkpointing=options.gradient_checkpointing,
        pad_token_id=inputs.pad_token_id,
    )


def run_side(job: Job, python: Path, output: Path) -> dict[str, Any] | None:
    """One side as a process; None (and a word on stderr) when it fails."""
    clear_folder(output)
    job_file = output / "job.json"
    job_file.write_text(json.dumps(asdict(job)))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(job.threads)), "HF_HUB_OFFLINE": "1"}
    if SIDES[job.side] == "main":
        environment["PYTHONPATH"] = os.pathsep.join(
            str(environments.REPOSITORY / root) for root in ("operator", "services")
        )
    log = output / "log.txt"
    with log.open("w") as stream:
        ended = subprocess.run(
            [str(python), str(HERE / "sides" / f"{job.side}.py"), str(job_file)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=output,
            timeout=SIDE_TIMEOUT_SECONDS,
        )
    if ended.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        print(
            f"The side {job.side} failed with exit code {ended.returncode}; its log is {log}:\n{tail}",
            file=sys.stderr,
            flush=True,
        )
        return None
    figures: dict[str, Any] = json.loads((output / "figures.json").read_text())
    return figures


def clear_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def describe(options: argparse.Namespace, inputs: Inputs) -> str:
    """Where and on what this was measured, for the reader of the table."""
    load = os.getloadavg()[0]
    return "\n".join(
        [
            f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Machine: {processor_name()}, {os.cpu_count()} cores, load {load:.1f} at start, "
            f"{options.threads} thread(s) a side, device {options.device}{device_name(options.device)}.",
            f"Model: {inputs.model_words}. Data: {inputs.data_words}.",
            f"Recipe: QLoRA NF4, rank {options.rank}, alpha {options.alpha:g}, learning rate {options.learning_rate:g}, "
            f"gradient checkpointing {'on' if options.gradient_checkpointing else 'off'}.",
        ]
    )


def describe_plan(plan: Plan, inputs: Inputs) -> str:
    return (
        f"Batch {plan.batch_size}, sequence length {plan.sequence_length} (examples of {inputs.mean_tokens:.0f} tokens on average, "
        f"the longest {inputs.longest_tokens}), {plan.steps} steps after {plan.warmup_steps}, rounds: {plan.repeats}"
    )


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    if device != "cuda":
        return ""
    import torch

    return f" ({torch.cuda.get_device_name()})"


if __name__ == "__main__":
    sys.exit(main())

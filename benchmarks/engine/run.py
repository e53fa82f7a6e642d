"""Measure the CPU engine against transformers' `generate()` with PEFT: same base, adapters, prompts and machine, in the same run.

Both sides live as processes all through; rounds are interleaved (generate() one at a time, in static batches, then the engine with 1, 4 and 16
chats), over 1 and over 8 adapters. Prints tables of medians and, as its last line, the marks as JSON. What is counted stands in README.md.

    python benchmarks/engine/run.py             # the tiny base and a random Llama of 100M parameters
    python benchmarks/engine/run.py --quick     # half a minute: one round of the tiny base, no figures to quote
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "services")]
from inputs import ADAPTERS, Inputs, Scale, prepare  # noqa: E402
from load import Engine, Streamed  # noqa: E402
from report import (  # noqa: E402
    ALONE,
    MARKED,
    TOGETHER,
    Adapters,
    Cell,
    Round,
    judge,
    marks_line,
    render_adapters,
    render_curve,
    render_rates,
)

from llamero.engine.settings import choose_threads  # noqa: E402

CHATS = (1, 4, 16)
CURVE = (1, 2, 4, 8, 12, 16, 32)
STATIC_BATCH = 16
FURTHER_ADAPTERS = 24

SCALES = {
    "tiny": Scale("tiny", prompts=48, asked=48, alone=16, tokens=64),
    "larger": Scale("larger", prompts=32, asked=32, alone=4, tokens=32),
}
QUICK = Scale("tiny", prompts=16, asked=16, alone=16, tokens=24)


class Peer:
    """sides/alone.py as a process."""

    def __init__(self, inputs: Inputs, threads: int) -> None:
        job = {
            "base": str(inputs.base),
            "adapters": [[n, str(p)] for n, p in inputs.adapters],
            "threads": threads,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "sides" / "alone.py"), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        if not self._read().get("ready"):
            raise SystemExit("The peer did not start.")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *unused: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def ask(self, way: str, requests: Sequence[tuple[str, str]], tokens: int) -> tuple[Round, list[tuple[int, ...]]]:
        assert self._process.stdin is not None
        asked = {"way": way, "requests": requests, "tokens": tokens, "batch": STATIC_BATCH}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told = self._read()
        answers = [tuple(ids) for ids in told["answers"]]
        return Round(sum(map(len, answers)), told["seconds"], told["cpu_seconds"]), answers

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The peer ended; its words are above.")
        found: dict[str, Any] = json.loads(line)
        return found


class Checker:
    """Counts answers of the engine, and those that are what the adapter says by itself."""

    def __init__(self) -> None:
        self._alone: dict[tuple[str, str], tuple[int, ...]] = {}
        self.answers = self.equal = 0

    def learn(self, requests: Sequence[tuple[str, str]], answers: Sequence[tuple[int, ...]]) -> None:
        self._alone.update(zip(requests, answers, strict=True))

    def missing(self, requests: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [r for r in dict.fromkeys(requests) if r not in self._alone]

    def check(self, requests: Sequence[tuple[str, str]], answers: Sequence[tuple[int, ...]]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self.answers += 1
            self.equal += answer == self._alone[request]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(describe_machine(), flush=True)
    scales = [QUICK] if options.quick else [SCALES[name] for name in options.models]
    marks: dict[str, Any] = {}
    everything: dict[str, Any] = {}
    for scale in scales:
        found = measure(scale, folder, options)
        everything[scale.name] = found["figures"]
        if scale.name == MARKED:
            marks = found["marks"]
    if options.output:
        Path(options.output).write_text(json.dumps(everything, indent=1))
    print(marks_line(marks))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SCALES), help="a comma-separated choice of %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--threads", type=int, help="torch threads of both sides; by default the engine's own choice")
    parser.add_argument("--quick", action="store_true", help="one short round of the tiny base: does it work")
    parser.add_argument("--folder", default=str(_cache() / "bench-engine"), help="for made models and logs")
    parser.add_argument("--output", help="write all figures to this JSON file")
    options = parser.parse_args(arguments)
    options.models = tuple(name.strip() for name in options.models.split(",") if name.strip())
    unknown = [name for name in options.models if name not in SCALES]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; there are: {', '.join(SCALES)}")
    if options.quick:
        options.repeats = 1
    return options


def measure(scale: Scale, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one base, its curve and what an adapter costs."""
    inputs = prepare(scale.name, folder, scale.prompts)
    threads = choose_threads(inputs.parameters, options.threads)
    print(
        f"\n{scale.name}: {inputs.parameters / 1e6:,.1f}M parameters in float32, {threads} thread(s) a side, {ADAPTERS} LoRA adapters "
        f"(rank 16, all linear layers), {scale.asked} chats of up to {scale.tokens} tokens, rounds: {options.repeats}\n",
        flush=True,
    )
    checker = Checker()
    rounds: dict[Cell, list[Round]] = {}
    with Peer(inputs, threads) as peer, Engine(inputs, threads, folder, ADAPTERS) as engine:
        warm_up(peer, engine, inputs)
        for number in range(options.repeats):
            for adapters in (1, ADAPTERS):
                measure_round(scale, inputs, peer, engine, adapters, rounds, checker)
            say(f"  round {number + 1} of {options.repeats} done")
        print(render_rates(rounds), flush=True)
        curve = {} if options.quick else measure_curve(scale, inputs, peer, engine, checker)
    alone = median(r.rate for r in rounds[Cell(ALONE, ADAPTERS)])
    if curve:
        print(f"\nOver {ADAPTERS} adapters:\n\n{render_curve(curve, alone)}", flush=True)
    costs = weigh_adapters(inputs, threads, folder)
    print(f"\n{render_adapters(costs)}\n{checker.equal} of {checker.answers} answers are those made alone", flush=True)
    figures = {
        "rounds": [
            {"chats": c.chats, "adapters": c.adapters, "rounds": [r.__dict__ for r in found]}
            for c, found in rounds.items()
        ],
        "curve": curve,
        "adapters": costs.__dict__,
        "equal": checker.equal,
        "answers": checker.answers,
    }
    return {"figures": figures, "marks": judge(rounds, checker.equal, checker.answers)}


def warm_up(peer: Peer, engine: Engine, inputs: Inputs) -> None:
    requests = spread(inputs, 4, ADAPTERS)
    for way in ("alone", "together"):
        peer.ask(way, requests, 4)
    engine.stream(requests, 4, 4)


def spread(inputs: Inputs, count: int, adapters: int) -> list[tuple[str, str]]:
    """The first `count` prompts, adapters taking turns."""
    return [(inputs.adapters[n % adapters][0], inputs.prompts[n]) for n in range(count)]


def measure_round(
    scale: Scale,
    inputs: Inputs,
    peer: Peer,
    engine: Engine,
    adapters: int,
    rounds: dict[Cell, list[Round]],
    checker: Checker,
) -> None:
    """Every side once, so that a slow spell of the machine hits all alike."""
    requests = spread(inputs, scale.asked, adapters)
    few = requests[: scale.alone]
    found, answers = peer.ask("alone", few, scale.tokens)
    rounds.setdefault(Cell(ALONE, adapters), []).append(found)
    checker.learn(few, answers)
    found, _ = peer.ask("together", requests, scale.tokens)
    rounds.setdefault(Cell(TOGETHER, adapters), []).append(found)
    if rest := checker.missing(requests):
        checker.learn(rest, peer.ask("alone", rest, scale.tokens)[1])
    for chats in CHATS:
        asked = few if chats == 1 else requests
        streamed = engine.stream(asked, scale.tokens, chats)
        checker.check(asked, streamed.answers)
        rounds.setdefault(Cell(chats, adapters), []).append(as_round(streamed))


def as_round(streamed: Streamed) -> Round:
    return Round(streamed.tokens, streamed.seconds, streamed.cpu_seconds, median(streamed.first_token_seconds))


def measure_curve(scale: Scale, inputs: Inputs, peer: Peer, engine: Engine, checker: Checker) -> dict[int, float]:
    """Tokens a second over chats at a time; the median of three."""
    requests = spread(inputs, scale.asked, ADAPTERS)
    rates: dict[int, list[float]] = {}
    for _ in range(3):
        for chats in CURVE:
            asked = requests[: scale.alone] if chats == 1 else requests
            streamed = engine.stream(asked, scale.tokens, chats)
            checker.check(asked, streamed.answers)
            rates.setdefault(chats, []).append(streamed.tokens / streamed.seconds)
    return {chats: median(found) for chats, found in rates.items()}


def weigh_adapters(inputs: Inputs, threads: int, folder: Path) -> Adapters:
    """Load further adapters into an engine of its own that has answered with one, and see what each takes."""
    with Engine(inputs, threads, folder, 1) as engine:
        engine.stream(spread(inputs, 4, 1), 4, 4)
        before = engine.resident_bytes()
        seconds = []
        for number in range(FURTHER_ADAPTERS):
            _, path = inputs.adapters[number % ADAPTERS]
            body = {"lora_name": f"further-{number}", "lora_path": str(path)}
            seconds.append(engine.post("/v1/load_lora_adapter", body))
        each = (engine.resident_bytes() - before) // FURTHER_ADAPTERS
    return Adapters(each, inputs.adapter_bytes, median(seconds), max(seconds), FURTHER_ADAPTERS)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe_machine() -> str:
    """Where and when this was measured, for the reader of the tables."""
    import peft
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Machine: {_processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at "
        f"start. {versions}.."
    )


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _cache() -> Path:
    cache = os.environ.get("LLAMERO_CACHE")
    if cache:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llamero"


if __name__ == "__main__":
    sys.exit(main())

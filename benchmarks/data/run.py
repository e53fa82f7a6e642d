"""How fast data is prepared: llamero beside BeautifulSoup, datatrove, Data-Juicer, rensa and rouge_score on the same data in one run.

    python benchmarks/data/run.py                          # every part: the curves, and the marked size three times, A B A B
    python benchmarks/data/run.py --quick                  # small inputs: does it work; no figures to quote
    python benchmarks/data/run.py --only gopher,near       # some parts

Each side is a process of its own (sides/<side>.py) with one thread. Prints a table a part and, as its last line, the marks as JSON.
What is counted how stands in ../README.md.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers
from inputs import Inputs, find_data, prepare_inputs
from parts import OWN, PARTS, Part, Side
from plot import draw_curves
from report import is_same_text, judge, marks_line, render_table, summarise

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "sides"))
from measurement import THREAD_VARIABLES, Job  # noqa: E402

SIDE_TIMEOUT_SECONDS = 3600
NO_PEERS = 2
"""Exit code where the peers or the data are not there."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    data = find_data(options.data, peers.REPOSITORY)
    if data is None:
        print("The real data is not there: name its folder in LLAMERO_DATA (see the README).", file=sys.stderr)
        return NO_PEERS
    try:
        pythons = {"main": peers.own_python(), "peers": peers.ensure_peers()}
    except subprocess.CalledProcessError as error:
        print(f"The peers' environment could not be made: {error}", file=sys.stderr)
        return NO_PEERS
    folder = Path(options.folder)
    inputs = prepare_inputs(data, folder / "inputs")
    print(describe(), flush=True)

    marks: dict[str, dict[str, Any]] = {}
    everything: list[dict[str, Any]] = []
    failed = False
    for part in options.parts:
        runs = measure_part(part, options, inputs, folder, pythons)
        summaries = summarise(part, runs)
        failed |= not runs or any(run["figures"] is None for run in runs)
        everything.append({"part": part.name, "title": part.title, "summaries": summaries})
        print(f"\n{part.title}\n\n{render_table(part, summaries)}", flush=True)
        if not options.quick:
            marks |= judge(part, summaries)
    if options.output:
        Path(options.output).write_text(json.dumps(everything, indent=1))
    if options.plot:
        Path(options.plot).write_text(draw_curves(options.parts, everything))
    print(marks_line(marks))
    return 1 if failed else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(names), help="a comma-separated choice of %(default)s")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round, no marks")
    parser.add_argument("--no-curve", action="store_true", help="the largest size alone")
    parser.add_argument("--rounds", type=int, help="rounds at the largest size, instead of each part's own")
    parser.add_argument("--sizes", help="other sizes of the chosen parts, comma-separated; the last is the marked one")
    parser.add_argument("--data", default=os.environ.get("LLAMERO_DATA"), help="the folder of real data")
    cache = peers.environments.cache_folder() / "bench-data"
    parser.add_argument("--folder", default=str(cache), help="for inputs, outputs and logs")
    parser.add_argument("--output", help="write all figures to this JSON file")
    parser.add_argument("--plot", help="draw the curves into this SVG file")
    options = parser.parse_args(arguments)
    chosen = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"unknown part {unknown[0]!r}; there are: {', '.join(names)}")
    options.parts = [part for part in PARTS if part.name in chosen]
    return options


def choose_sizes(part: Part, options: argparse.Namespace) -> tuple[int, ...]:
    """The sizes to measure, from the smallest to the marked one."""
    if options.sizes:
        return tuple(int(size) for size in options.sizes.split(","))
    sizes = part.quick if options.quick else part.sizes
    return sizes[-1:] if options.no_curve else sizes


def measure_part(
    part: Part, options: argparse.Namespace, inputs: Inputs, folder: Path, pythons: dict[str, Path]
) -> list[dict[str, Any]]:
    """Every size once, the last in rounds, side after side in each, so that a slow spell of the machine hits all alike."""
    runs = []
    sizes = choose_sizes(part, options)
    for size in sizes:
        rounds = 1 if options.quick or size != sizes[-1] else options.rounds or part.rounds
        for number in range(rounds):
            done: dict[str, Path] = {}
            for side in part.sides:
                output = folder / "runs" / f"{part.name}-{size}-{side.file}"
                job = build_job(part, side, size, options.quick, inputs, output, done)
                figures = run_side(job, side, pythons[side.environment], output)
                if figures is None:
                    continue
                done[side.file] = output
                compare_findings(part, done, figures, side.file)
                runs.append({"size": size, "side": side.file, "figures": figures})
                print(f"  {part.name} {size:,} round {number + 1} {side.label}: {figures['wall_seconds']:.3f} s",
                      file=sys.stderr, flush=True)  # fmt: skip
            if done and size != sizes[-1]:
                clear_work(done.values())
    return runs


def build_job(
    part: Part, side: Side, size: int, is_quick: bool, inputs: Inputs, output: Path, done: dict[str, Path]
) -> Job:
    options = dict(part.quick_options if is_quick and part.quick_options else part.options)
    if side.file == "gopher_llamero" and "gopher_datatrove" in done:
        options["tokens"] = str(done["gopher_datatrove"] / "tokens.jsonl")
    path = ""
    if part.input:
        path = str(inputs.write_copies(size) if part.input == "copies" else getattr(inputs, part.input))
    return Job(part.name, side.file, path, size, str(output), options)


def run_side(job: Job, side: Side, python: Path, output: Path) -> dict[str, Any] | None:
    """One side as a process; None (and a word on stderr) when it fails."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    job_file = output / "job.json"
    job_file.write_text(json.dumps(asdict(job)))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment.pop("PYTHONPATH", None)
    if side.environment == OWN:
        environment["PYTHONPATH"] = os.pathsep.join(str(peers.REPOSITORY / root) for root in ("operator", "services"))
    log = output / "log.txt"
    with log.open("w") as stream:
        ended = subprocess.run(
            [str(python), str(HERE / "sides" / f"{side.file}.py"), str(job_file)],
            stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=output, timeout=SIDE_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
    if ended.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        print(f"The side {side.file} failed with exit code {ended.returncode}; its log is {log}:\n{tail}",
              file=sys.stderr, flush=True)  # fmt: skip
        return None
    figures: dict[str, Any] = json.loads((output / "figures.json").read_text())
    return figures


def compare_findings(part: Part, done: dict[str, Path], figures: dict[str, Any], side: str) -> None:
    """What one side's outcome is worth beside the other's: kept among the figures of the side that ran last, or of llamero's."""
    if part.name == "html" and len(done) == 2:
        own, other = (
            [json.loads(line) for line in (done[name] / "texts.jsonl").read_text().splitlines()]
            for name in ("html_llamero", "html_beautifulsoup")
        )
        figures["found"]["equal"] = sum(map(is_same_text, own, other)) / max(1, len(own))
    if part.name == "rouge" and len(done) == 2:
        best = [json.loads((done[name] / "figures.json").read_text())["found"]["best"] for name in done]
        limit = part.options["limit"]
        pairs = [(a, b) for a, b in zip(*best, strict=False) if max(a, b) > limit]
        figures["found"]["differing_above_limit"] = sum(abs(a - b) > 1e-9 for a, b in pairs)
    if part.name == "kcenter" and len(done) == 2:
        chosen = [set(json.loads((folder / "chosen.json").read_text())) for folder in done.values()]
        figures["found"]["same_choice"] = len(chosen[0] & chosen[1]) / max(1, len(chosen[0]))


def clear_work(folders: Any) -> None:
    """Take away what is large and was looked at."""
    for folder in folders:
        for path in Path(folder).iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in ("job.json", "figures.json", "log.txt"):
                path.unlink()


def describe() -> str:
    """Where and when this was measured, for the reader of the tables."""
    load = os.getloadavg()[0]
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Machine: {processor_name()}, {os.cpu_count()} cores, load {load:.1f} at the start; "
        "one thread a process."
    )


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())

"""Rollouts while clients stream chats: what fails, who answers, and how long a rollout or a way back takes.

    python benchmarks/rollout/run.py             # all stories on all three engines, two replicas on two nodes
    python benchmarks/rollout/run.py --quick     # a good adapter and one that is voted down, one replica: does it work

Everything is real (API server, controllers, scheduler, operator, chat service, agents, llamero's own engine) but TGI and vLLM, for which
the stand-ins of tests/standins answer, and the models, which are tiny. Prints a table and, as its last line, the marks as JSON. What is
counted how stands in ../README.md.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests")]

from cluster.control_plane import ControlPlane  # noqa: E402
from cluster.leftovers import make_folder  # noqa: E402
from serving.fixtures import Tiny  # noqa: E402
from serving.stories import STORIES, Row, on_stage, play  # noqa: E402
from serving.world import STRATEGY, running  # noqa: E402

ENGINES = ("cpu", "tgi", "vllm")
NAMES = {"cpu": "llamero's engine", "tgi": "TGI (stand-in)", "vllm": "vLLM (stand-in)"}
KILLED = "a pod killed mid-stream"


@contextmanager
def on_plane(folder: Path) -> Iterator[ControlPlane]:
    crds = sorted((REPOSITORY / "charts" / "llamero" / "crds").glob("*.yaml"))
    with ControlPlane(crds=crds) as plane:
        yield plane


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """The stories' rows, engine by engine, each on a control plane of its own."""
    tiny = Tiny(folder / "tiny")
    rows: list[Row] = []
    for engine in options.engines:
        print(f"{NAMES[engine]} …", file=sys.stderr, flush=True)
        with (
            on_plane(folder) as plane,
            running(plane, folder / engine, tiny.base, nodes=options.replicas) as world,
            on_stage(world, tiny, engine, options.replicas, clients=options.clients) as stage,
        ):
            for letter in options.stories:
                found = play(stage, letter)
                rows += found
                for row in found:
                    print(describe(row), file=sys.stderr, flush=True)
    return rows


def describe(row: Row) -> str:
    """A row of the table."""
    seconds = ", ".join(f"{name}: {value:.1f}" for name, value in row.seconds.items())
    failed = f"{row.tally.failed} ({row.broken} broken off with an error)" if row.broken else str(row.tally.failed)
    first = "" if row.tally.first_token_p95 is None else f"{1000 * row.tally.first_token_p95:.0f}"
    return f"| {row.story} | {NAMES[row.engine]} | {row.tally.requests:,} | {failed} | {row.tally.wrong} | {first} | {seconds} |"


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| story | engine | requests | failed | wrong answers | first token p95, ms | seconds |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    return "\n".join([*lines, *map(describe, rows)])


def mark(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "mark": limit, "met": value <= limit}


def find_marks(rows: Sequence[Row]) -> dict[str, Any]:
    """None may fail but the streams of the pod that was killed; none may be answered wrongly in any story."""
    others = [r for r in rows if r.story != KILLED]
    killed = [r for r in rows if r.story == KILLED]
    return {
        "failed_requests_with_no_pod_killed": mark(sum(r.tally.failed for r in others), 0),
        "answers_by_a_wrong_adapter": mark(sum(r.tally.wrong for r in rows), 0),
        "failed_besides_the_killed_pods_streams": mark(sum(r.unexplained for r in killed), 0),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="by default all")
    parser.add_argument("--stories", default="".join(STORIES), help="letters a to f, by default all")
    parser.add_argument("--replicas", type=int, default=2, help="pods, each on a node of its own")
    parser.add_argument("--clients", type=int, default=4, help="clients that stream at a time")
    parser.add_argument("--quick", action="store_true", help="stories a and d with one replica, no marks")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every figure there, as JSON")
    options = parser.parse_args()
    if options.quick:
        options.stories, options.replicas = "ad", 1
    if unknown := set(options.stories) - set(STORIES):
        parser.error(f"--stories: there is no story {', '.join(sorted(unknown))}")
    if options.replicas < 2 and set(options.stories) & {"e", "f"}:
        parser.error("stories e and f need --replicas 2 or more")
    return options


def main() -> None:
    options = parse_options()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = make_folder("rollout")
    try:
        rows = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.output:
        options.output.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    steps = " → ".join(f"{s}%" for s in STRATEGY["steps"])
    print(
        f"Steps {steps}, at least {STRATEGY['intervalSeconds']} s each; {options.clients} clients; {options.replicas} replica(s).\n"
    )
    print(table(rows))
    print(json.dumps({"benchmark": "rollout", "marks": {} if options.quick else find_marks(rows)}), flush=True)


if __name__ == "__main__":
    main()

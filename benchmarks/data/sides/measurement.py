"""What every side shares: the job it is given, the clock, and the figures it hands back.

Runs in every side's environment, so it needs the standard library alone.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One measurement. `input` is JSONL, of which the first `size` lines are taken; `options` are the part's own."""

    part: str
    side: str
    input: str
    size: int
    output: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.output)

    def read_rows(self) -> list[dict[str, Any]]:
        rows = []
        with Path(self.input).open(encoding="utf-8") as lines:
            for line in lines:
                if len(rows) == self.size:
                    break
                rows.append(json.loads(line))
        return rows


@dataclass
class Figures:
    """What a side reports: `documents` of work in `wall_seconds` (and `cpu_seconds` of user and system time, its children's too),
    the largest memory of any of its processes, and what it found."""

    documents: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """What runs inside is what is measured; may be used more than once."""
        wall, cpu = time.perf_counter(), read_cpu()
        yield
        self.wall_seconds += time.perf_counter() - wall
        self.cpu_seconds += read_cpu() - cpu


def read_cpu() -> float:
    """User and system seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def read_peak(of_children: bool) -> int:
    """Bytes of the largest of this process's children that have ended (0 where there were none), or of this process."""
    who = resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * 1024


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_side(measure: Callable[[Job, Figures], None]) -> None:
    """Read the job named on the command line, measure, write `figures.json` into its folder."""
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    figures = Figures()
    measure(job, figures)
    figures.peak_rss_bytes = figures.peak_rss_bytes or max(read_peak(True), read_peak(False))
    (job.folder / "figures.json").write_text(json.dumps(asdict(figures)))

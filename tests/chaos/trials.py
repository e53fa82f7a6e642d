"""What came of each fault that was tried, and the table that a suite's trials add up to. Knows no fault."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEADER = ("fault", "tried", "recovered", "median s", "p95 s", "lost steps", "duplicates")


@dataclass(frozen=True)
class Trial:
    """One fault, tried once.

    `seconds` from the fault to the job's next progress; `lost_steps` are training steps that had to be done again; `duplicates` are
    pods beyond one an attempt, and pods that finished what another one had finished. `problems` say why it is not recovered.
    """

    fault: str
    seconds: float | None
    lost_steps: int = 0
    duplicates: int = 0
    problems: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def is_recovered(self) -> bool:
        return not self.problems and not self.skipped


@dataclass(frozen=True)
class Row:
    """All trials of one fault."""

    fault: str
    tried: int
    recovered: int
    median: float | None
    p95: float | None
    lost_steps: int
    duplicates: int
    skipped: str = ""

    def cells(self) -> tuple[str, ...]:
        if self.skipped and not self.tried:
            return (self.fault, "0", f"skipped: {self.skipped}", "", "", "", "")
        seconds = ["" if s is None else f"{s:.1f}" for s in (self.median, self.p95)]
        return (self.fault, str(self.tried), str(self.recovered), *seconds, str(self.lost_steps), str(self.duplicates))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def add_up(trials: Iterable[Trial]) -> list[Row]:
    """A row a fault, in the order in which they came."""
    by_fault: dict[str, list[Trial]] = {}
    for trial in trials:
        by_fault.setdefault(trial.fault, []).append(trial)
    return [_row(fault, found) for fault, found in by_fault.items()]


def _row(fault: str, found: Sequence[Trial]) -> Row:
    tried = [t for t in found if not t.skipped]
    seconds = [t.seconds for t in tried if t.seconds is not None]
    return Row(
        fault=fault,
        tried=len(tried),
        recovered=sum(t.is_recovered for t in tried),
        median=statistics.median(seconds) if seconds else None,
        p95=percentile(seconds, 0.95) if seconds else None,
        lost_steps=sum(t.lost_steps for t in tried),
        duplicates=sum(t.duplicates for t in tried),
        skipped=next((t.skipped for t in found if t.skipped), ""),
    )


def render(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]

    def draw(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join("-" * (w + 2) if n == 0 else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return "\n".join([draw(HEADER), rule, *(draw(line) for line in lines[1:])])


def build_marks(rows: Sequence[Row]) -> dict[str, object]:
    """The suite's figures, for a program."""
    return {
        "tried": sum(r.tried for r in rows),
        "recovered": sum(r.recovered for r in rows),
        "duplicates": sum(r.duplicates for r in rows),
        "lostSteps": sum(r.lost_steps for r in rows),
        "secondsP95": {r.fault: round(r.p95, 2) for r in rows if r.p95 is not None},
    }

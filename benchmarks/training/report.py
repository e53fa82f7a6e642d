"""From the sides' figures to the table, the ratios and the line of marks. Pure: no process, no clock, no file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

BENCHMARK = "training"
OWN_SIDE = "llamero_flattened"

# The marks on CPU with the tiny model at batch 8: tokens a CPU-second of llamero, as a multiple of the peer's.
MARKS = {"trainer_padded": 3.0, "trainer_grouped": 1.7, "trl_packed": 2.5, "llamafactory_packed": 1.8}


@dataclass(frozen=True)
class SideSummary:
    """Medians over the repeats of one side. Rates in real tokens a second; `mean_loss` over the measured steps, nats a target
    token; a `ratio` is llamero's rate over this side's."""

    side: str
    repeats: int
    tokens_per_cpu_second: float
    tokens_per_wall_second: float
    target_tokens_per_cpu_second: float
    mean_loss: float | None
    peak_rss_bytes: int
    peak_device_bytes: int | None
    cpu_ratio: float | None
    wall_ratio: float | None
    notes: tuple[str, ...]


def rate(figures: Mapping[str, Any], tokens: str, seconds: str) -> float:
    return figures[tokens] / figures[seconds]


def paired_ratio(own: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], seconds: str) -> float | None:
    """The median over rounds of llamero's rate over the peer's: each round measured both one after the other."""
    pairs = list(zip(own, peer, strict=False))
    if not pairs:
        return None
    return median(rate(a, "tokens", seconds) / rate(b, "tokens", seconds) for a, b in pairs)


def summarise_sides(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[SideSummary]:
    """One summary a side that has any figures, in the order given."""
    own = figures.get(OWN_SIDE, ())
    return [summarise_side(side, rows, own) for side, rows in figures.items() if rows]


def summarise_side(side: str, rows: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> SideSummary:
    losses = [mean(row["losses"][-row["steps"] :]) for row in rows if row["losses"]]
    device_peaks = [row["peak_device_bytes"] for row in rows if row["peak_device_bytes"] is not None]
    return SideSummary(
        side=side,
        repeats=len(rows),
        tokens_per_cpu_second=median(rate(row, "tokens", "cpu_seconds") for row in rows),
        tokens_per_wall_second=median(rate(row, "tokens", "wall_seconds") for row in rows),
        target_tokens_per_cpu_second=median(rate(row, "target_tokens", "cpu_seconds") for row in rows),
        mean_loss=median(losses) if losses else None,
        peak_rss_bytes=max(row["peak_rss_bytes"] for row in rows),
        peak_device_bytes=max(device_peaks) if device_peaks else None,
        cpu_ratio=paired_ratio(own, rows, "cpu_seconds"),
        wall_ratio=paired_ratio(own, rows, "wall_seconds"),
        notes=tuple(rows[0]["notes"]),
    )


def render_table(summaries: Sequence[SideSummary]) -> str:
    """A Markdown table, so that it can go into RESULTS.md as it is."""
    lines = [
        "| side | tokens / CPU-s | tokens / s | target tokens / CPU-s | mean loss | peak RSS MiB | peak GPU MiB "
        "| llamero ÷ side, CPU-s | llamero ÷ side, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summaries:
        cells = [
            row.side,
            f"{row.tokens_per_cpu_second:,.0f}",
            f"{row.tokens_per_wall_second:,.0f}",
            f"{row.target_tokens_per_cpu_second:,.0f}",
            "–" if row.mean_loss is None else f"{row.mean_loss:.3f}",
            f"{row.peak_rss_bytes / 2**20:,.0f}",
            "–" if row.peak_device_bytes is None else f"{row.peak_device_bytes / 2**20:,.0f}",
            "–" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}",
            "–" if row.wall_ratio is None else f"{row.wall_ratio:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judge(summaries: Sequence[SideSummary], asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The marks of the sides that were asked for; a side without figures (or without llamero's) has value None and is not met."""
    ratios = {row.side: row.cpu_ratio for row in summaries}
    marks = {}
    for side, mark in MARKS.items():
        if side not in asked:
            continue
        value = ratios.get(side)
        marks[f"llamero_over_{side}"] = {
            "value": None if value is None else round(value, 3),
            "mark": mark,
            "met": value is not None and value >= mark,
        }
    return marks


def marks_line(marks: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps({"benchmark": BENCHMARK, "marks": marks})


def parse_marks(output: str) -> dict[str, dict[str, Any]]:
    """The marks in a benchmark's output, whose last line they are. Raises ValueError where the last line is something else."""
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines:
        raise ValueError("no marks: the output is empty")
    try:
        row = json.loads(lines[-1])
    except ValueError as error:
        raise ValueError(f"no marks: the last line is not JSON: {lines[-1][:200]!r}") from error
    if not isinstance(row, dict) or row.get("benchmark") != BENCHMARK or not isinstance(row.get("marks"), dict):
        raise ValueError(f"no marks of the benchmark {BENCHMARK!r} on the last line: {lines[-1][:200]!r}")
    marks: dict[str, dict[str, Any]] = row["marks"]
    return marks

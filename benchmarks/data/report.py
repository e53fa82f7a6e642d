"""From the sides' figures to tables, marks and the last line. Pure: no process, no clock, no file."""

import json
import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from parts import Mark, Part

BENCHMARK = "data"
FAR = 10_000_000
MIB = 2**20

Summary = dict[str, Any]
"""One side at one size: `size`, `side`, `wall_seconds`, `cpu_seconds`, `rate` and `cpu_rate` (documents a second and CPU-second),
`peak_rss_bytes`, `found`, `rounds`."""


def summarise(part: Part, runs: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """The medians of each side at each size, in the order of sizes and sides. `runs`: {"size", "side", "figures"}."""
    summaries = []
    for size in sorted({run["size"] for run in runs}):
        for side in part.sides:
            rows = [run["figures"] for run in runs if run["size"] == size and run["side"] == side.file]
            if rows:
                summaries.append(_summarise_side(size, side.file, rows))
    _describe_growth(summaries)
    return summaries


def _summarise_side(size: int, side: str, rows: Sequence[Mapping[str, Any]]) -> Summary:
    return {
        "size": size,
        "side": side,
        "wall_seconds": median(row["wall_seconds"] for row in rows),
        "cpu_seconds": median(row["cpu_seconds"] for row in rows),
        "rate": median(row["documents"] / row["wall_seconds"] for row in rows),
        "cpu_rate": median(row["documents"] / max(row["cpu_seconds"], 1e-9) for row in rows),
        "peak_rss_bytes": max(row["peak_rss_bytes"] for row in rows),
        "found": rows[-1]["found"],
        "rounds": len(rows),
    }


def _describe_growth(summaries: Sequence[Summary]) -> None:
    """Each side's growth over its sizes: seconds a document at the largest over those at the smallest, and memory at ten million."""
    for side in {summary["side"] for summary in summaries}:
        rows = [summary for summary in summaries if summary["side"] == side]
        if len(rows) < 2:
            continue
        first, last = rows[0], rows[-1]
        last["growth"] = (last["wall_seconds"] / last["size"]) / (first["wall_seconds"] / first["size"])
        last["memory_at_10_million"] = extrapolate(
            [row["size"] for row in rows], [row["peak_rss_bytes"] / MIB for row in rows], FAR
        )


def extrapolate(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """The value at a size on the straight line of least squares through the others; not below the largest that was seen."""
    count = len(sizes)
    middle, height = sum(sizes) / count, sum(values) / count
    spread = sum((x - middle) ** 2 for x in sizes)
    slope = sum((x - middle) * (y - height) for x, y in zip(sizes, values, strict=True)) / spread
    return max(height + slope * (size - middle), max(values))


def judge(part: Part, summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """The part's marks at its largest size; one that can't be read (a side failed) has value None and is not met."""
    largest = max((summary["size"] for summary in summaries), default=0)
    figures = {summary["side"]: summary for summary in summaries if summary["size"] == largest}
    return {mark.name: _judge_mark(mark, figures) for mark in part.marks}


def _judge_mark(mark: Mark, figures: dict[str, Summary]) -> dict[str, Any]:
    try:
        value = mark.read(figures)
    except (KeyError, TypeError, ZeroDivisionError):
        return {"value": None, "mark": mark.bound, "met": False}
    return {"value": round(value, 5), "mark": mark.bound, "met": mark.is_met(value)}


def render_table(part: Part, summaries: Sequence[Summary]) -> str:
    """A Markdown table, so that it can go into RESULTS.md as it is."""
    labels = {side.file: side.label for side in part.sides}
    lines = [
        f"| {part.unit} | side | seconds | {part.unit} / s | CPU-s | {part.unit} / CPU-s | peak MiB | found |",
        "|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in summaries:
        found = ", ".join(f"{name} {_show(value)}" for name, value in row["found"].items() if _is_short(value))
        lines.append(
            f"| {row['size']:,} | {labels[row['side']]} | {row['wall_seconds']:,.3f} | {row['rate']:,.0f} "
            f"| {row['cpu_seconds']:,.2f} | {row['cpu_rate']:,.0f} | {row['peak_rss_bytes'] / MIB:,.0f} | {found} |"
        )
    return "\n".join(lines)


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_IMAGE = re.compile(r"!\[[^\]]*\]\([^)\s]*\)")
_TARGET = re.compile(r"\]\((?:[^()\s]|\([^()\s]*\))*\)")
_FENCE = re.compile(r"^([ \t>]*)(`{3,})[\w+#.-]+[ \t]*$", re.MULTILINE)
_NUMBER = re.compile(r"^[ \t>]*\d+\.[ \t]", re.MULTILINE)


def fold_text(text: str) -> str:
    """A text without white space and signs."""
    return re.sub(r"[\W_]+", "", text)


def fold_markdown(text: str) -> str:
    """Markdown without white space, signs and what its marks add: images, links' targets, fences' languages, numbers of lists."""
    for pattern in (_IMAGE, _TARGET, _NUMBER):
        text = pattern.sub("", text)
    return fold_text(_FENCE.sub("", text))


def is_same_text(markdown: str, plain: str) -> bool:
    """Whether Markdown and plain text of the same page say the same, but for white space and marks. A plain text's own `1.` at a
    line's beginning may be what Markdown writes for a list, so that both are looked at without."""
    return fold_markdown(markdown) == fold_text(_NUMBER.sub("", plain))


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

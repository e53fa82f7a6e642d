"""The curves of all parts as one SVG: what a document costs at each size, by side, both axes logarithmic, a small chart a part.

A level line is a cost that grows with the data and no faster.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from parts import OWN, Part

COLUMNS, WIDTH, HEIGHT = 2, 440, 280
LEFT, RIGHT, TOP, BOTTOM = 68, 150, 40, 36
LEAST_SPAN = 10.0
"""An upward axis covers at least this ratio: a cost that hardly changes looks so."""
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f")  # llamero's first


def draw_curves(parts: Sequence[Part], measured: Sequence[Mapping[str, Any]]) -> str:
    """An SVG document; parts with fewer than two sizes are left out."""
    charts = []
    for part, row in zip(parts, measured, strict=True):
        if len({summary["size"] for summary in row["summaries"]}) > 1:
            place = len(charts)
            shift = f"translate({place % COLUMNS * WIDTH},{place // COLUMNS * HEIGHT})"
            charts.append(f'<g transform="{shift}">{draw_chart(part, row["summaries"])}</g>')
    rows = max(1, math.ceil(len(charts) / COLUMNS))
    width, height = COLUMNS * WIDTH, rows * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" role="img"><title>Milliseconds a document over size, by part and side</title>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(charts)}</svg>\n'
    )


def draw_chart(part: Part, summaries: Sequence[Mapping[str, Any]]) -> str:
    """One part: lines of milliseconds a document over size, a dot a size, a label at each line's end."""
    sizes = [summary["size"] for summary in summaries]
    costs = [find_cost(summary) for summary in summaries]
    across = Axis(min(sizes), max(sizes), LEFT, WIDTH - RIGHT)
    spare = math.sqrt(max(1.0, LEAST_SPAN * min(costs) / max(costs)))
    up = Axis(min(costs) / spare, max(costs) * spare, HEIGHT - BOTTOM, TOP)
    drawn = [f'<text x="8" y="18" font-size="13" font-weight="600" fill="#222">{escape(part.title)}</text>']
    for value in up.ticks():
        y = up(value)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g} ms</text>')
    for value in dict.fromkeys((min(sizes), max(sizes))):
        drawn.append(
            f'<text x="{across(value):.1f}" y="{HEIGHT - 16}" text-anchor="middle" fill="#555">{value:,}</text>'
        )
    labels: list[float] = []
    colours = iter(COLOURS[1:])
    for side in part.sides:
        points = [(across(row["size"]), up(find_cost(row))) for row in summaries if row["side"] == side.file]
        if not points:
            continue
        colour = COLOURS[0] if side.environment == OWN and side.label.startswith("llamero") else next(colours)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = points[-1][1]
        while any(abs(y - other) < 13 for other in labels):
            y += 13
        labels.append(y)
        drawn.append(f'<text x="{points[-1][0] + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(side.label)}</text>')
    return "".join(drawn)


def find_cost(summary: Mapping[str, Any]) -> float:
    """Milliseconds a document."""
    return 1000 / max(summary["rate"], 1e-6)


class Axis:
    """A logarithmic map from values to drawing units."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = math.log10(low), math.log10(high)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (math.log10(value) - self.low) / span if span > 1e-9 else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten between the ends; where there are fewer than two, the ends themselves."""
        powers = [10.0**power for power in range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)]
        return powers if len(powers) > 1 else [float(f"{10**edge:.2g}") for edge in (self.low, self.high)]

"""The report's charts as inline SVG, drawn from plain numbers. Colours and type belong to the page's style sheet (by class).

Nothing here needs a script: what a pointer would ask for stands in `<title>` elements, and each chart carries a text that says
the same to a screen reader.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from llamero.evaluation.formatting import (
    clean_text,
    format_compact,
    format_count,
    format_figure,
    format_plain,
    format_share,
)
from llamero.spec.results import Histogram, LossPoint, ScoreHistogram

MAX_DRAWN_POINTS = 240
TICK_CHARACTER_WIDTH = 6.6


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; underscores in attribute names stand for dashes, a trailing one is dropped (`class_`)."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_write(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>{''.join(map(_write, children))}</{name}>")


def _write(value: object) -> Markup:
    """A value as SVG text: numbers to a hundredth, text cleaned and escaped, elements as they are."""
    if isinstance(value, float):
        return Markup(f"{value:.2f}".rstrip("0").rstrip("."))
    if isinstance(value, Markup):
        return value
    return escape(clean_text(str(value)))


@dataclass(frozen=True)
class Scale:
    """A linear map from data to drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + ((value - self.low) / span if span else 0.5) * (self.end - self.start)


def choose_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(values: Sequence[float], window: int | None = None) -> list[float]:
    """Centred moving average over `window` values (by default a sixteenth of them): no lag, as a finished curve needs none.

    Towards the ends the window narrows on both sides alike, so that the first and the last value stay themselves.
    """
    half = (window or max(3, len(values) // 16)) // 2
    sums = [0.0, *accumulate(values)]
    smoothed = []
    for index in range(len(values)):
        reach = min(half, index, len(values) - 1 - index)
        smoothed.append((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))
    return smoothed


@dataclass(frozen=True)
class DrawnPoint:
    """Some steps of a curve as one place on the drawing: their mean, extremes and the smoothed value in their middle."""

    first_step: int
    last_step: int
    mean: float
    low: float
    high: float
    smoothed: float


def gather_points(steps: Sequence[int], values: Sequence[float], limit: int = MAX_DRAWN_POINTS) -> list[DrawnPoint]:
    """At most about `limit` places for a curve of any length; smoothing is over all of its steps."""
    kept = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    smoothed = smooth([v for _, v in kept])
    size = max(1, math.ceil(len(kept) / limit))
    places = []
    for start in range(0, len(kept), size):
        group = kept[start : start + size]
        numbers = [v for _, v in group]
        mean = sum(numbers) / len(numbers)
        places.append(
            DrawnPoint(group[0][0], group[-1][0], mean, min(numbers), max(numbers), smoothed[start + len(group) // 2])
        )
    return places


def draw_loss_curve(curve: Sequence[LossPoint], width: int, height: int, resumed_from: Iterable[int] = ()) -> Markup:
    """Loss by optimiser step: each step faintly, the moving average over it, a mark where the run was resumed."""
    places = gather_points([p.step for p in curve], [p.loss for p in curve])
    if not places:
        return Markup()
    title = (
        f"Training loss over {format_count(len(curve))} optimiser steps: "
        f"{format_figure(places[0].mean, 3)} at step {format_count(places[0].first_step)}, "
        f"{format_figure(places[-1].smoothed, 3)} (moving average) at step {format_count(places[-1].last_step)}."
    )
    return _draw_curve(places, width, height, title, "loss", with_smoothing=True, marks=list(resumed_from))


def draw_small_curve(steps: Sequence[int], values: Sequence[float], label: str, width: int, height: int) -> Markup:
    """One quantity by optimiser step, such as the learning rate, as a small line without smoothing."""
    places = gather_points(steps, values)
    if not places:
        return Markup()
    peak = max(p.high for p in places)
    title = f"{label} by optimiser step, from {format_plain(places[0].mean)} over a peak of {format_plain(peak)} to {format_plain(places[-1].mean)}."
    return _draw_curve(places, width, height, title, label, with_smoothing=False, marks=[], tick_count=2)


def _draw_curve(
    places: Sequence[DrawnPoint],
    width: int,
    height: int,
    title: str,
    label: str,
    *,
    with_smoothing: bool,
    marks: Sequence[int],
    tick_count: int = 5,
) -> Markup:
    low, high = min(p.low for p in places), max(p.high for p in places)
    ticks = choose_ticks(0.0 if low >= 0 and low < 0.5 * high else low, high, tick_count)
    written_ticks = [format_plain(t) for t in ticks]
    left = 12 + TICK_CHARACTER_WIDTH * max(map(len, written_ticks))
    first, last = places[0].first_step, places[-1].last_step
    x = Scale(first, last, left, width - 10.0)
    y = Scale(ticks[0], ticks[-1], height - 40.0, 10.0)
    parts = [_draw_y_axis(ticks, written_ticks, y, left, width - 10.0), _draw_step_axis(first, last, x, height)]
    middles = [(x((p.first_step + p.last_step) / 2), p) for p in places]
    if any(p.first_step != p.last_step for p in places):
        upper = [(cx, y(p.high)) for cx, p in middles]
        lower = [(cx, y(p.low)) for cx, p in reversed(middles)]
        parts.append(element("path", d=_path(upper + lower) + "Z", class_="band"))
    parts.append(
        element(
            "path",
            d=_path([(cx, y(p.mean)) for cx, p in middles]),
            class_="raw" if with_smoothing else "line",
            fill="none",
        )
    )
    if with_smoothing:
        parts.append(element("path", d=_path([(cx, y(p.smoothed)) for cx, p in middles]), class_="line", fill="none"))
    for step in marks:
        if first <= step <= last:
            parts.append(
                element(
                    "g",
                    element("title", f"Resumed from the checkpoint after step {format_count(step)}"),
                    element("line", x1=x(step), x2=x(step), y1=10, y2=height - 40.0, class_="mark"),
                    element("rect", x=x(step) - 4, y=10, width=8, height=height - 50.0, class_="hit"),
                )
            )
    parts.append(_draw_pointer_targets(middles, y, label, width, height, with_smoothing=with_smoothing))
    return _draw_figure(width, height, title, parts)


def _draw_y_axis(ticks: Sequence[float], written: Sequence[str], y: Scale, left: float, right: float) -> Markup:
    parts = []
    for tick, text in zip(ticks, written, strict=True):
        parts.append(element("line", x1=left, x2=right, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(element("text", text, x=left - 6, y=y(tick) + 4, text_anchor="end"))
    return element("g", *parts, aria_hidden="true")


def _draw_step_axis(first: int, last: int, x: Scale, height: int) -> Markup:
    room = max(4, int((x.end - x.start) / 80))
    ticks = sorted({round(t) for t in choose_ticks(first, last, room) if first <= t <= last} or {first})
    parts = [
        element("text", format_count(t), x=min(x(t), x.end - 3), y=height - 24.0, text_anchor="middle") for t in ticks
    ]
    parts.append(
        element("text", "optimiser step", x=(x.start + x.end) / 2, y=height - 6.0, text_anchor="middle", class_="unit")
    )
    return element("g", *parts, aria_hidden="true")


def _draw_pointer_targets(
    middles: Sequence[tuple[float, DrawnPoint]], y: Scale, label: str, width: int, height: int, *, with_smoothing: bool
) -> Markup:
    targets = []
    for index, (cx, place) in enumerate(middles):
        before = (middles[index - 1][0] + cx) / 2 if index else cx - 4
        after = (cx + middles[index + 1][0]) / 2 if index + 1 < len(middles) else cx + 4
        value = place.smoothed if with_smoothing else place.mean
        targets.append(
            element(
                "g",
                element("title", _describe_place(place, label, with_smoothing)),
                element("rect", x=before, y=10, width=max(1.0, after - before), height=height - 50.0, class_="hit"),
                element("line", x1=cx, x2=cx, y1=10, y2=height - 40.0, class_="guide"),
                element("circle", cx=cx, cy=y(value), r=3.5, class_="dot"),
                class_="target",
            )
        )
    return element("g", *targets)


def _describe_place(place: DrawnPoint, label: str, with_smoothing: bool) -> str:
    if place.first_step == place.last_step:
        where = f"Step {format_count(place.first_step)}: {label} {format_figure(place.mean)}"
    else:
        where = (
            f"Steps {format_count(place.first_step)} to {format_count(place.last_step)}: mean {label} "
            f"{format_figure(place.mean)} ({format_figure(place.low)} to {format_figure(place.high)})"
        )
    return f"{where}, moving average {format_figure(place.smoothed)}" if with_smoothing else where


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:  # a line of no length is not drawn; a short one is
        (px, py) = points[0]
        points = [(px - 2, py), (px + 2, py)]
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def _draw_figure(width: int, height: int, title: str, parts: Iterable[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=title,
        class_="chart",
        style=f"max-width:{width * 1.25:.0f}px",
    )


def draw_histogram(read: Histogram | None, kept: Histogram | None, marker: int | None, unit: str) -> Markup:
    """Records by length, as read (outline) and as kept (filled), with a line at the recommended sequence length.

    Bins are drawn equally wide, whatever their edges are; the edges stand below.
    """
    shown = [h for h in (read, kept) if h is not None and h.counts]
    if not shown:
        return Markup()
    edges = max((h.edges for h in shown), key=len)
    width, height = 350, 200
    top = max(max(h.counts) for h in shown)
    ticks = choose_ticks(0, max(1, top), 3)
    written = [format_compact(t) for t in ticks]
    left = 12 + TICK_CHARACTER_WIDTH * max(map(len, written))
    bins = len(edges) - 1
    x, y = Scale(0, bins, left, width - 10.0), Scale(0, ticks[-1], height - 40.0, 16.0)
    parts = [_draw_y_axis(ticks, written, y, left, width - 10.0), _draw_edges(edges, x, height, unit)]
    for histogram, name in ((read, "read"), (kept, "kept")):
        if histogram is not None:
            parts.append(_draw_bars(histogram, edges, x, y, name))
    if marker is not None and edges[0] <= marker <= edges[-1]:
        place = x(_place_in_bins(marker, edges))
        parts.append(
            element(
                "g",
                element("title", f"Recommended sequence length: {format_count(marker)} tokens"),
                element("line", x1=place, x2=place, y1=8, y2=height - 40.0, class_="mark"),
            )
        )
    parts.append(_draw_bin_targets(read, kept, edges, x, height, unit))
    totals = ", ".join(f"{format_count(sum(h.counts))} {n}" for h, n in ((read, "read"), (kept, "kept")) if h)
    return _draw_figure(width, height, f"Records by length in {unit}: {totals}.", parts)


def draw_scores(scores: ScoreHistogram) -> Markup:
    """Records by score, with a line at each bound of a threshold step; the range stands below."""
    width, height = 350, 200
    ticks = choose_ticks(0, max(1, *scores.counts), 3)
    written = [format_compact(t) for t in ticks]
    left = 12 + TICK_CHARACTER_WIDTH * max(map(len, written))
    low, high = scores.edges[0], scores.edges[-1]
    x, y = Scale(low, high, left, width - 10.0), Scale(0, ticks[-1], height - 40.0, 16.0)
    parts = [_draw_y_axis(ticks, written, y, left, width - 10.0)]
    for start, end, count in zip(scores.edges, scores.edges[1:], scores.counts, strict=False):
        if count:
            top = min(y(count), y(0) - 1.5)
            bar = element(
                "rect",
                element("title", f"{format_figure(start)} to {format_figure(end)}: {format_count(count)} records"),
                x=x(start) + 1,
                y=top,
                width=max(1.0, x(end) - x(start) - 2),
                height=y(0) - top,
                class_="bar kept",
            )
            parts.append(bar)
    bounds = [(name, bound) for name, bound in (("Least", scores.min), ("Greatest", scores.max)) if bound is not None]
    for name, bound in bounds:
        place = x(min(max(bound, low), high))
        title = element("title", f"{name} score kept: {format_figure(bound)}")
        parts.append(element("g", title, element("line", x1=place, x2=place, y1=8, y2=height - 40.0, class_="mark")))
    for place, value, anchor in ((x(low), low, "start"), (x(high), high, "end")):
        parts.append(element("text", format_figure(value), x=place, y=height - 24.0, text_anchor=anchor))
    told = "; ".join(f"{name.lower()} kept {format_figure(bound)}" for name, bound in bounds)
    summary = f"{format_count(sum(scores.counts))} records by {scores.name}" + (f": {told}." if told else ".")
    return _draw_figure(width, height, summary, parts)


def _draw_edges(edges: Sequence[int], x: Scale, height: int, unit: str) -> Markup:
    written = [format_compact(e).replace("\N{NO-BREAK SPACE}", "") for e in edges]
    bins = len(edges) - 1
    room = (x.end - x.start) / max(1, bins)
    stride = max(1, math.ceil((max(map(len, written)) * TICK_CHARACTER_WIDTH + 10) / room))
    places = [(x(index), text) for index, text in enumerate(written) if index % stride == 0]
    if _has_tail(edges):
        # The last bin takes all that is longer: its far end is one record's length and would mislead.
        places = [(x(index), text) for index, text in enumerate(written[: bins - stride]) if index % stride == 0]
        places.append((min(x(bins - 0.5), x.end - 10), f"≥{written[-2]}"))
    parts = [element("text", text, x=place, y=height - 24.0, text_anchor="middle") for place, text in places]
    parts.append(element("text", unit, x=(x.start + x.end) / 2, y=height - 6.0, text_anchor="middle", class_="unit"))
    return element("g", *parts, aria_hidden="true")


def _has_tail(edges: Sequence[int]) -> bool:
    """Whether even bins end in one that takes whatever is longer."""
    widths = [high - low for low, high in pairwise(edges)]
    return len(widths) > 2 and len(set(widths[:-1])) == 1 and widths[-1] > widths[0]


def _draw_bars(histogram: Histogram, edges: Sequence[int], x: Scale, y: Scale, name: str) -> Markup:
    bars = []
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        if not count:
            continue
        start, end = x(_place_in_bins(low, edges)), x(_place_in_bins(high, edges))
        top = min(y(count), y(0) - 1.5)  # a single record must be seen
        bars.append(
            element(
                "rect", x=start + 1, y=top, width=max(1.0, end - start - 2), height=y(0) - top, class_=f"bar {name}"
            )
        )
    return element("g", *bars)


def _draw_bin_targets(
    read: Histogram | None, kept: Histogram | None, edges: Sequence[int], x: Scale, height: int, unit: str
) -> Markup:
    targets = []
    for index, (low, high) in enumerate(pairwise(edges)):
        counts = [
            f"{format_count(histogram.counts[index])} {name}"
            for histogram, name in ((read, "read"), (kept, "kept"))
            if histogram is not None and histogram.edges == list(edges)
        ]
        if counts:
            targets.append(
                element(
                    "g",
                    element("title", f"{format_count(low)} to {format_count(high)} {unit}: {', '.join(counts)}"),
                    element("rect", x=x(index), y=8, width=x(1) - x(0), height=height - 48.0, class_="hit"),
                    class_="target",
                )
            )
    return element("g", *targets)


def _place_in_bins(value: float, edges: Sequence[int]) -> float:
    """Where a length stands when each bin is one unit wide."""
    for index, (low, high) in enumerate(pairwise(edges)):
        if value <= high:
            return index + max(0.0, (value - low) / (high - low) if high > low else 0.0)
    return float(len(edges) - 1)


def draw_share(share: float, offset: float = 0.0, kind: str = "") -> Markup:
    """A bar of a table's row: a share of the whole, from `offset` on. Decoration: the number stands beside it."""
    width = max(0.4, 100 * share) if share > 0 else 0.0
    return element(
        "svg",
        element("rect", x=0, y=0, width=100, height=10, class_="track"),
        element("rect", x=min(100 * offset, 100 - width), y=0, width=width, height=10, class_=f"fill {kind}".strip()),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="share",
    )


def draw_shares(parts: Sequence[tuple[str, float]]) -> Markup:
    """One bar cut into the named parts' shares, with the names as titles."""
    total = sum(size for _, size in parts)
    if not total > 0:
        return Markup()
    drawn, start = [], 0.0
    for index, (name, size) in enumerate(parts):
        width = 100 * size / total
        drawn.append(
            element(
                "rect",
                element("title", f"{name}: {format_share(size / total)}"),
                x=start,
                y=0,
                width=max(0.0, width - 0.3),
                height=10,
                class_=f"part part-{index % 4}",
            )
        )
        start += width
    return element(
        "svg", *drawn, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true", class_="share tall"
    )

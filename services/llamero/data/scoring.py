"""Histograms of scores from shards: counts by value, rounded to three digits, which can be merged whatever the range turns out to be."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import floor, isfinite, log10
from typing import Any

from llamero.data.steps.record import Record, find_score
from llamero.spec.profiles import PlannedStep
from llamero.spec.results import ScoreHistogram

BINS = 20


class ScoreCounts:
    """How many records have which score; `wanted` names computed ones that steps choose by."""

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self._wanted = tuple(wanted)
        self._counts: dict[str, Counter[float]] = {}

    def add(self, record: Record) -> None:
        """Count the scores that a record has when it leaves the pipeline."""
        for name, value in record.scores.items():
            self._count(name, value)
        for name in self._wanted:
            computed = find_score(record, name) if name not in record.scores else None
            if computed is not None:
                self._count(name, computed)

    def _count(self, name: str, value: float) -> None:
        if isfinite(value):
            self._counts.setdefault(name, Counter())[round_score(value)] += 1

    def to_json(self) -> dict[str, list[list[float]]]:
        return {name: [[v, n] for v, n in sorted(counts.items())] for name, counts in sorted(self._counts.items())}


def round_score(value: float) -> float:
    """The value to three significant digits."""
    return round(value, 2 - floor(log10(abs(value)))) if value else 0.0


def build_histograms(parts: Iterable[Mapping[str, Any]], steps: Iterable[PlannedStep]) -> list[ScoreHistogram]:
    """A histogram of BINS even bins for each score, with the bounds of the threshold steps that use it."""
    whole: dict[str, Counter[float]] = {}
    for part in parts:
        for name, pairs in part.items():
            counts = whole.setdefault(name, Counter())
            for value, count in pairs:
                counts[value] += int(count)
    bounds: dict[str, dict[str, float | None]] = {}
    for step in steps:
        if step.kind == "threshold":
            bounds[step.options.score] = {"min": step.options.min, "max": step.options.max}
    return [_build_histogram(name, counts, bounds.get(name, {})) for name, counts in sorted(whole.items())]


def _build_histogram(name: str, counts: Counter[float], bounds: Mapping[str, float | None]) -> ScoreHistogram:
    low, high = min(counts), max(counts)
    if low == high:
        high = low + 1
    width = (high - low) / BINS
    edges = [round(low + width * i, 9) for i in range(BINS)] + [high]
    bins = [0] * BINS
    for value, count in counts.items():
        bins[min(int((value - low) / width), BINS - 1)] += count
    return ScoreHistogram(name=name, edges=edges, counts=bins, min=bounds.get("min"), max=bounds.get("max"))

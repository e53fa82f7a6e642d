"""Lengths in tokens: histograms that can be merged, and the statistics table, with its recommended sequence length, made of them.

An input is everything up to the answers (template, system prompt, prompts), an output what is trained on (answers and their stop
tokens); both are counted as the template renders them, before long records are cut.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamero.spec.results import Histogram, LengthChoice, LengthSummary, StatisticsRow

OTHER, OVERALL = "other", "overall"
SEQUENCE_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
ACCEPTED_CUT = 0.01
_HISTOGRAM_BINS = 24


@dataclass
class LengthCounts:
    """How many records have which length: exact, small, and mergeable."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        self.counts[length] += 1

    def merge(self, other: "LengthCounts") -> None:
        self.counts.update(other.counts)

    @property
    def records(self) -> int:
        return self.counts.total()

    @property
    def tokens(self) -> int:
        return sum(length * count for length, count in self.counts.items())

    def summarise(self) -> LengthSummary:
        """Mean, exact median (the mean of the middle two) and largest; zeros where there is no record."""
        records = self.records
        if not records:
            return LengthSummary(mean=0.0, median=0.0, max=0)
        middle = (self._length_at((records - 1) // 2), self._length_at(records // 2))
        return LengthSummary(mean=self.tokens / records, median=sum(middle) / 2, max=max(self.counts))

    def _length_at(self, rank: int) -> int:
        seen = 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen > rank:
                return length
        raise IndexError(rank)

    def cut_fraction(self, sequence_length: int) -> float:
        """The share of records longer than `sequence_length`."""
        records = self.records
        return sum(c for length, c in self.counts.items() if length > sequence_length) / records if records else 0.0

    def to_json(self) -> list[list[int]]:
        return [[length, self.counts[length]] for length in sorted(self.counts)]

    @classmethod
    def from_json(cls, pairs: Iterable[Sequence[int]]) -> "LengthCounts":
        counts: Counter[int] = Counter()
        for length, count in pairs:
            counts[length] = count
        return cls(counts)


@dataclass
class DomainLengths:
    """The lengths of one domain's records. `samples` counts also those that could not be read and have no lengths."""

    samples: int = 0
    input: LengthCounts = field(default_factory=LengthCounts)
    output: LengthCounts = field(default_factory=LengthCounts)
    total: LengthCounts = field(default_factory=LengthCounts)

    def add(self, input_length: int, output_length: int) -> None:
        self.samples += 1
        self.input.add(input_length)
        self.output.add(output_length)
        self.total.add(input_length + output_length)

    def merge(self, other: "DomainLengths") -> None:
        self.samples += other.samples
        self.input.merge(other.input)
        self.output.merge(other.output)
        self.total.merge(other.total)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "total": self.total.to_json(),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "DomainLengths":
        parts = {key: LengthCounts.from_json(row[key]) for key in ("input", "output", "total")}
        return cls(samples=row["samples"], **parts)


class Statistics:
    """Lengths by domain, for one stage of the data."""

    def __init__(self, domains: Mapping[str, DomainLengths] | None = None) -> None:
        self.domains: dict[str, DomainLengths] = dict(domains or {})

    def of(self, domain: str) -> DomainLengths:
        lengths = self.domains.get(domain)
        if lengths is None:
            lengths = self.domains[domain] = DomainLengths()
        return lengths

    def merge(self, other: "Statistics") -> None:
        for name, lengths in other.domains.items():
            self.of(name).merge(lengths)

    @property
    def overall(self) -> DomainLengths:
        whole = DomainLengths()
        for lengths in self.domains.values():
            whole.merge(lengths)
        return whole

    def to_json(self) -> dict[str, Any]:
        return {name: self.domains[name].to_json() for name in sorted(self.domains)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Statistics":
        return cls({name: DomainLengths.from_json(lengths) for name, lengths in row.items()})


def find_domain(tags: Sequence[str], domains: Mapping[str, Sequence[str]]) -> str:
    """The first domain of the manifest that names one of the record's tags, else `other`."""
    own = set(tags)
    for name, wanted in domains.items():
        if not own.isdisjoint(tag.lower() for tag in wanted):
            return name
    return OTHER


def build_statistics(stage: str, statistics: Statistics, domains: Sequence[str]) -> list[StatisticsRow]:
    """A stage's rows: the manifest's domains in order, `other`, and `overall`, which the others sum to."""
    names = [*dict.fromkeys([*domains, OTHER])]
    rows = [_build_row(stage, name, statistics.domains.get(name, DomainLengths())) for name in names]
    return [*rows, _build_row(stage, OVERALL, statistics.overall)]


def _build_row(stage: str, domain: str, lengths: DomainLengths) -> StatisticsRow:
    return StatisticsRow(
        stage=stage,
        domain=domain,
        samples=lengths.samples,
        tokens=lengths.total.tokens,
        input_tokens=lengths.input.tokens,
        output_tokens=lengths.output.tokens,
        input=lengths.input.summarise(),
        output=lengths.output.summarise(),
    )


def build_histograms(read: DomainLengths, kept: DomainLengths) -> list[Histogram]:
    """Input and output lengths as read and as kept, on the same edges, and the whole lengths of what was kept."""
    histograms: list[Histogram] = []
    for name in ("input", "output"):
        before, after = getattr(read, name), getattr(kept, name)
        edges = choose_edges(before)
        histograms.append(_build_histogram(f"{name}-read", before, edges))
        histograms.append(_build_histogram(f"{name}-kept", after, edges))
    histograms.append(_build_histogram("total-kept", kept.total, choose_edges(kept.total)))
    return histograms


def choose_edges(lengths: LengthCounts) -> list[int]:
    """Even bins of a round width up to the 99th percentile; the last bin takes the tail."""
    if not lengths.records:
        return [0, 1]
    high = lengths._length_at((lengths.records - 1) * 99 // 100)
    width = next(step for step in _round_steps() if step * _HISTOGRAM_BINS > high)
    edges = list(range(0, high + width + 1, width))
    return edges if edges[-1] > max(lengths.counts) else [*edges, max(lengths.counts) + 1]


def _round_steps() -> Iterable[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def _build_histogram(name: str, lengths: LengthCounts, edges: list[int]) -> Histogram:
    from bisect import bisect_right

    counts = [0] * (len(edges) - 1)
    for length, count in lengths.counts.items():
        counts[min(bisect_right(edges, length) - 1, len(counts) - 1)] += count
    return Histogram(name=name, edges=edges, counts=counts)


def choose_sequence_length(lengths: LengthCounts) -> tuple[int, list[LengthChoice]]:
    """The smallest sequence length that cuts at most 1% of the records, and what each choice would cut."""
    choices = [LengthChoice(sequence_length=n, cut_fraction=lengths.cut_fraction(n)) for n in SEQUENCE_LENGTHS]
    fitting = (c.sequence_length for c in choices if c.cut_fraction <= ACCEPTED_CUT)
    return next(fitting, SEQUENCE_LENGTHS[-1]), choices

"""Data looked at without being prepared: its lengths counted, or its records streamed, in one process and in bounded memory."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamero.data.applying import Applier
from llamero.data.clean import Candidate, CleanCounts, CleanOptions, clean_rows, count_rows
from llamero.data.guessing import scratch_folder
from llamero.data.lengths import build_histograms, build_statistics, choose_sequence_length
from llamero.data.measure import Measure, WordMeasure
from llamero.data.reading import read_task_rows
from llamero.data.rows import Row
from llamero.data.sources import read_secret, secret_variable
from llamero.spec.job import DataSource
from llamero.spec.results import Histogram, LengthChoice, StatisticsRow
from llamero.storage import list_files

OnRows = Callable[[int], None]
_REPORT_ROWS = 2000


@dataclass(frozen=True)
class Counted:
    """What was counted: rows read, those that are no records by reason, and the lengths of the others in `unit`s."""

    unit: str
    read: int
    rejected: dict[str, int]
    rows: list[StatisticsRow]
    histograms: list[Histogram]
    recommended_sequence_length: int | None
    choices: list[LengthChoice] = field(default_factory=list)

    def to_json_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "read": self.read,
            "rejected": self.rejected,
            "statistics": [row.to_json_dict() for row in self.rows],
            "histograms": [histogram.to_json_dict() for histogram in self.histograms],
            "recommendedSequenceLength": self.recommended_sequence_length,
            "lengthChoices": [choice.to_json_dict() for choice in self.choices],
        }


def count_lengths(
    sources: Sequence[DataSource],
    domains: Mapping[str, list[str]],
    measure: Measure,
    on_rows: OnRows,
    allow_http: bool = False,
) -> Counted:
    """The statistics of records as they are read, by domain. Raises StorageError where a file can't be read."""
    counts = CleanCounts()
    rejected: dict[str, int] = {}
    for source, file, rows in _open_sources(sources, allow_http):
        options = CleanOptions(source, file, file, None, dict(domains))
        told = counts.read
        for reason in count_rows(rows, options, measure, counts):
            if reason:
                rejected[reason] = rejected.get(reason, 0) + 1
            if counts.read - told >= _REPORT_ROWS:
                told = counts.read
                on_rows(told)
        on_rows(counts.read)
    whole = counts.statistics.overall
    recommended, choices = choose_sequence_length(whole.total) if measure.has_tokens else (None, [])
    wanted = ("input-read", "output-read", "total-kept")
    histograms = [h for h in build_histograms(whole, whole) if h.name in wanted]
    return Counted(
        unit="tokens" if measure.has_tokens else "words",
        read=counts.read,
        rejected=dict(sorted(rejected.items())),
        rows=build_statistics("read", counts.statistics, list(domains)),
        histograms=[h.model_copy(update={"name": h.name.partition("-")[0]}) for h in histograms],
        recommended_sequence_length=recommended,
        choices=choices,
    )


def read_candidates(source: DataSource, allow_http: bool = False) -> Iterator[Candidate]:
    """The records of a source as every preparation makes them, before any step; what is no record is left out."""
    nothing = Applier([], 0, 0.0)
    for own, file, rows in _open_sources([source], allow_http):
        options = CleanOptions(own, file, file, None, {})
        for outcome in clean_rows(rows, options, WordMeasure(), nothing, CleanCounts()):
            if isinstance(outcome, Candidate):
                yield outcome


def _open_sources(sources: Sequence[DataSource], allow_http: bool) -> Iterator[tuple[DataSource, str, Iterator[Row]]]:
    scratch: Path = scratch_folder()
    try:
        for source in sources:
            variable = secret_variable(source)
            for number, uri in enumerate(list_files(source.uri, read_secret(variable))):
                name = uri.split("?", 1)[0].rsplit("/", 1)[-1]
                task = {"uri": uri, "name": name, "format": source.format, "secret": variable, "allowHttp": allow_http}
                yield source, name, read_task_rows(task, scratch / str(number))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

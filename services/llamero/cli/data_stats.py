"""`llamero data stats`: how long the records of any data are, by domain, with histograms and the sequence length that fits them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from llamero.cli.data_inputs import (
    ALLOW_HTTP_OPTION,
    BASE_OPTION,
    COLUMNS_OPTION,
    FORMAT_OPTION,
    JSON_OPTION,
    Say,
    explained,
    fail,
    is_manifest,
    make_sources,
    read_job,
    read_yaml,
)
from llamero.cli.data_tables import format_table
from llamero.cli.display import format_number, make_display
from llamero.cli.run import ExitCode
from llamero.spec.job import DataSource
from llamero.spec.progress import Progress
from llamero.spec.results import Histogram, LengthSummary, StatisticsRow

BAR_WIDTH = 40
OVERALL = "overall"
_BLOCKS = " ▏▎▍▌▋▊▉█"


@click.command()
@click.argument("targets", metavar="FILE… | MANIFEST | RUN", nargs=-1, required=True)
@FORMAT_OPTION
@COLUMNS_OPTION
@BASE_OPTION
@click.option(
    "--template",
    type=click.Choice(["base", "alpaca", "vicuna", "chatml"]),
    default="base",
    show_default=True,
    help="With a base: the chat template.",
)
@click.option(
    "--domains", type=click.Path(path_type=Path), help="YAML file with lists of tags by domain, as data.domains."
)
@ALLOW_HTTP_OPTION
@JSON_OPTION
def stats(
    targets: tuple[str, ...],
    format_name: str,
    columns: str | None,
    base: Path | None,
    template: str,
    domains: Path | None,
    allow_http: bool,
    as_json: bool,
) -> None:
    """Count records and their lengths: means, medians, largest, histograms; with a base model in tokens, else in words.

    Takes files, folders, archives and URLs, the manifest of a job, or prepared data. Ends with 0 done, 2 wrong options, 3 data error.
    """
    progress = Console(stderr=True)
    with explained(), make_display(progress) as display:
        found, tags, may_http = _find_inputs(targets, format_name, columns, domains, allow_http, display.say)
        from llamero.data.looking import count_lengths
        from llamero.data.measure import WordMeasure, open_measure
        from llamero.data.shared import SharedFiles

        task: dict[str, Any] = {
            "tokenizer": str(base) if base else None,
            "template": template,
            "newTokens": [],
            "templateVariants": False,
        }
        measure = open_measure(task, SharedFiles()) if base else WordMeasure()
        counted = count_lengths(
            found, tags, measure, lambda rows: display.show(Progress("Counting", "records", rows)), may_http
        )
    if as_json:
        click.echo(json.dumps(counted.to_json_dict(), indent=2, ensure_ascii=False))
        return
    click.echo(f"{counted.read:,} rows, lengths in {counted.unit}\n\n{_format_rows(counted.rows, counted.unit)}")
    if counted.rejected:
        told = ", ".join(f"{count:,} {reason}" for reason, count in counted.rejected.items())
        click.echo(f"\nRows that are no records, or that say nothing: {told}")
    for histogram in counted.histograms:
        click.echo(draw_histogram(histogram, counted.unit))
    if counted.recommended_sequence_length is not None:
        cuts = ", ".join(f"{c.sequence_length}: {c.cut_fraction:.1%}" for c in counted.choices)
        click.echo(f"\nSequence length that cuts at most 1%: {counted.recommended_sequence_length} (would cut {cuts})")
    else:
        click.echo("\nGive --base, a base model's folder, for tokens and the sequence length that fits.")


def _find_inputs(
    targets: tuple[str, ...], format_name: str, columns: str | None, domains: Path | None, allow_http: bool, say: Say
) -> tuple[list[DataSource], dict[str, list[str]], bool]:
    if is_manifest(targets):
        given = read_job(Path(targets[0])).spec.data
        return [s for s in given.sources if s.generate is None], given.domains, given.allow_http
    tags = read_yaml(domains) if domains else {}
    tags = tags.get("domains", tags) if isinstance(tags, dict) else tags
    if not isinstance(tags, dict) or not all(isinstance(v, list) for v in tags.values()):
        fail(f"{domains} holds no lists of tags by domain, such as `code: [python, r]`.", ExitCode.BAD_MANIFEST)
    lists = {str(name): [str(tag) for tag in values] for name, values in tags.items()}
    return make_sources(targets, format_name, columns, allow_http, say), lists, allow_http


def _format_rows(rows: Sequence[StatisticsRow], unit: str) -> str:
    lines = []
    for row in rows:
        if not row.samples and row.domain != OVERALL:
            continue
        lengths = [_format_lengths(part) for part in (row.input, row.output)]
        lines.append([row.domain, f"{row.samples:,}", f"{row.tokens:,}", *lengths[0], *lengths[1]])
    names = [f"{side} {name}" for side in ("input", "output") for name in ("mean", "median", "max")]
    return format_table(["domain", "records", unit, *names], lines)


def _format_lengths(lengths: LengthSummary) -> list[str]:
    return [f"{lengths.mean:,.1f}", f"{lengths.median:,.1f}", f"{lengths.max:,.0f}"]


def draw_histogram(histogram: Histogram, unit: str) -> str:
    """A histogram as lines of text, a bin a line; empty bins at the end are left out."""
    most = max(histogram.counts, default=0)
    last = max((i for i, count in enumerate(histogram.counts) if count), default=-1)
    lines = [f"\n{histogram.name} ({unit})"]
    labels = [f"{low:,} to {high - 1:,}" for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    width = max((len(label) for label in labels[: last + 1]), default=0)
    for label, count in list(zip(labels, histogram.counts, strict=True))[: last + 1]:
        eighths = round(count / most * BAR_WIDTH * 8) if most else 0
        bar = "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
        lines.append(
            f"  {label.rjust(width)}  {bar or ('▏' if count else '')} {format_number(count) if count < 100 else f'{count:,}'}"
        )
    return "\n".join(lines)

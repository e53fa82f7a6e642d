"""`llamero data prepare`: the whole data phase without a job, from files or a manifest to a folder of prepared data."""

import json
import os
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
    explained,
    fail,
    is_manifest,
    make_sources,
    read_data_result,
    read_job,
    read_yaml,
)
from llamero.cli.data_tables import format_table
from llamero.cli.display import make_display
from llamero.cli.manifest import format_path, resolve_steps
from llamero.cli.run import ExitCode, RunOptions
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.profiles import PROFILES
from llamero.spec.results import DataResult
from llamero.spec.rules import Severity
from llamero.spec.validation import validate_job
from llamero.storage import is_local, local_path

SHARDS = ".shards"
"""In the output's folder: what is reused when the same is prepared again with other steps."""


@click.command()
@click.argument("targets", metavar="FILE… | MANIFEST", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for what is prepared.")
@FORMAT_OPTION
@COLUMNS_OPTION
@click.option("--recipe", type=click.Choice(sorted(PROFILES)), help="Steps of a profile. [default: instruction]")
@click.option("--steps", type=click.Path(path_type=Path), help="YAML file with a list of steps, as in a manifest.")
@BASE_OPTION
@click.option("--words", is_flag=True, help="Count words, though the manifest names a base model.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Processes that share the work. [default: 2, or the manifest's]"
)
@click.option("--sequence-length", type=click.IntRange(8), help="With a base: the most tokens of an example.")
@click.option("--evaluation-fraction", type=click.FloatRange(0, 0.5), help="Share of records held out. [default: 0.05]")
@click.option("--seed", type=int, help="Decides what is held out and what is sampled.")
@ALLOW_HTTP_OPTION
@JSON_OPTION
def prepare(
    targets: tuple[str, ...],
    output: Path,
    format_name: str,
    columns: str | None,
    recipe: str | None,
    steps: Path | None,
    base: Path | None,
    words: bool,
    workers: int | None,
    sequence_length: int | None,
    evaluation_fraction: float | None,
    seed: int | None,
    allow_http: bool,
    as_json: bool,
) -> None:
    """Read, clean, choose, deduplicate and split data into a folder: records, rejections with their reasons, and with a base model tokens.

    Takes files, folders, globs, archives and URLs, or the manifest of a job. Without a base model lengths are counted in words and nothing
    is cut. Ends with 0 done, 2 wrong options or manifest, 3 data error, 130 interrupted.
    """
    if recipe and steps:
        fail("Give either --recipe or --steps.", ExitCode.BAD_MANIFEST)
    progress = Console(stderr=as_json)
    changes = _collect_changes(recipe, steps, evaluation_fraction, seed, allow_http)
    with explained(), make_display(progress) as display:
        if is_manifest(targets):
            if format_name != "auto" or columns:
                fail("A manifest says its sources' formats: leave out --format and --columns.", ExitCode.BAD_MANIFEST)
            job = read_job(Path(targets[0]))
            raw = job.spec.to_json_dict()
        else:
            sources = make_sources(targets, format_name, columns, allow_http, display.say)
            raw = {"baseModel": {"uri": "file:///"}, "data": {"sources": [s.to_json_dict() for s in sources]}}
        spec = _build_spec(raw, changes, sequence_length)
        _refuse_output(output, spec)
        folder = base or (_find_base(spec, display) if is_manifest(targets) and not words else None)
        result = _prepare(spec, folder, output, workers, display)
    if as_json:
        click.echo(json.dumps(result.to_json_dict(), indent=2, ensure_ascii=False))
        return
    print_result(result, output)


def _collect_changes(
    recipe: str | None, steps: Path | None, evaluation_fraction: float | None, seed: int | None, allow_http: bool
) -> dict[str, Any]:
    """What the options say of `data`."""
    changes: dict[str, Any] = {}
    if recipe:
        changes["steps"] = [{"use": recipe}]
    if steps:
        content = read_yaml(steps)
        found = content.get("steps") if isinstance(content, dict) else content
        if not isinstance(found, list):
            fail(f"{steps} holds no list of steps, such as `- quality: {{}}`.", ExitCode.BAD_MANIFEST)
        changes["steps"], problems = resolve_steps(found, steps.resolve().parent)
        for problem in problems:
            fail(
                f"{steps}: {format_path(problem.path).removeprefix('spec.data.')}: {problem.message}",
                ExitCode.BAD_MANIFEST,
            )
    for name, value in (("evaluationFraction", evaluation_fraction), ("seed", seed)):
        if value is not None:
            changes[name] = value
    if allow_http:
        changes["allowHttp"] = True
    return changes


def _build_spec(raw: dict[str, Any], changes: dict[str, Any], sequence_length: int | None) -> FineTuneJobSpec:
    """The spec, validated as a job's is. Ends the command with every mistake."""
    spec = {**raw, "data": {**raw["data"], **changes}}
    if sequence_length is not None:
        spec["training"] = {**raw.get("training", {}), "sequenceLength": sequence_length}
    job, problems = validate_job(
        {"apiVersion": "llamero.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "data"}, "spec": spec}
    )
    # Of a job only its data is wanted here: nothing is trained, measured or served.
    mistakes = [p for p in problems if p.severity is Severity.ERROR and p.path[:2] == ("spec", "data")]
    mistakes = [
        p
        for p in mistakes
        if p.path != ("spec", "data", "evaluationFraction") or spec["data"].get("evaluationFraction") != 0
    ]
    if mistakes:
        for problem in mistakes:
            click.echo(f"{format_path(problem.path).removeprefix('spec.')}: {problem.message}", err=True)
        fail(f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}: nothing was started.", ExitCode.BAD_MANIFEST)
    return job.spec if job is not None else FineTuneJobSpec.model_validate(spec)


def _refuse_output(output: Path, spec: FineTuneJobSpec) -> None:
    """End the command where preparing would remove what is not ours, or would read its own outcome."""
    if output.exists() and not output.is_dir():
        fail(f"{output} is a file: choose a folder.", ExitCode.BAD_MANIFEST)
    for source in spec.data.sources:
        if is_local(source.uri) and output.resolve().is_relative_to(local_path(source.uri).resolve()):
            fail(f"{output} lies in {source.uri}, which is read: choose another folder.", ExitCode.BAD_MANIFEST)
    if (
        output.is_dir()
        and any(output.iterdir())
        and read_data_result(output) is None
        and not (output / SHARDS).is_dir()
    ):
        fail(f"{output} holds other files: choose an empty folder, or a new one.", ExitCode.BAD_MANIFEST)


def _find_base(spec: FineTuneJobSpec, display: Any) -> Path:
    from llamero.model.errors import ModelError
    from llamero.phases.base import find_base

    try:
        return find_base(spec.base_model, RunOptions(Path()).cache / "models", display.show).folder
    except ModelError as error:
        fail(f"{error} Or count in words with --words.", ExitCode.BAD_MANIFEST)


def _prepare(spec: FineTuneJobSpec, base: Path | None, output: Path, workers: int | None, display: Any) -> DataResult:
    from llamero.data.prepare import plan_data, prepare_data
    from llamero.data.sources import NO_TOKENIZER

    if base is None:
        digest = NO_TOKENIZER
    else:
        from llamero.model.bases import base_digest

        digest = base_digest(base)
    plan = plan_data(spec, digest)
    (output / SHARDS).mkdir(parents=True, exist_ok=True)
    chosen = workers or min(spec.data.workers, os.cpu_count() or 1)
    return prepare_data(spec, plan, base, output.resolve(), (output / SHARDS).resolve(), display.show, chosen)


# -- printing --------------------------------------------------------------------------------------------------------------------


def print_result(result: DataResult, output: Path) -> None:
    """The funnel and what is left, for a person."""
    rows = []
    for step in result.funnel:
        name = f"{step.number}. {step.kind}" if step.number is not None else step.kind
        figures = [f"{n:,}" if n else "-" for n in (step.before, step.dropped, step.changed)]
        why = _list_reasons(sorted(step.reasons.items(), key=lambda pair: -pair[1]))
        rows.append([name + (f" ({step.profile})" if step.profile else ""), *figures, why])
    share = f"{result.kept / max(1, result.read):.1%} of {result.read:,}"
    rows.append(["kept", f"{result.kept:,}", f"{result.read - result.kept:,}", "-", share])
    click.echo("\n" + format_table(["step", "records", "dropped", "changed", "why"], rows, runs_on=True) + "\n")
    train, held_out = result.train, result.evaluation
    tokens = f", {train.tokens + held_out.tokens:,} {result.unit}" if result.unit == "tokens" else ""
    click.echo(
        f"{train.records:,} records for training, {held_out.records:,} held out{tokens}, in {result.seconds:.1f}s; "
        f"{result.reused_shards} of {result.shards} shards reused."
    )
    for account in result.asked:
        click.echo(
            f"{account.purpose}: {account.asked:,} questions to {account.model}, {account.cached:,} known already, cost {account.cost:.2f}"
        )
    click.echo(f"Records, rejections and counts: {output}")


def _list_reasons(reasons: Sequence[tuple[str, int]], most: int = 4) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in reasons[:most])
    return shown + (f", {len(reasons) - most} more" if len(reasons) > most else "")

"""What the data commands are given: files, folders, URLs, manifests, prepared folders and runs; and how they end when those won't do."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from llamero.cli.manifest import load_manifest
from llamero.cli.run import ExitCode
from llamero.phases.processes import Interrupted, interrupt_on_signals
from llamero.spec.job import ColumnMapping, DataFormat, DataSource, FineTuneJob
from llamero.spec.names import MANIFEST_NAME, RunLayout, parse_run_name
from llamero.spec.results import DataResult
from llamero.spec.rules import Severity
from llamero.storage import StorageError, is_local, local_path

FORMAT_OPTION = click.option(
    "--format",
    "format_name",
    type=click.Choice(["auto", *(known.value for known in DataFormat)]),
    default="auto",
    show_default=True,
    help="How the records are laid out; auto guesses it from the first rows of each file.",
)
COLUMNS_OPTION = click.option(
    "--columns",
    metavar="FIELD=COLUMN,…",
    help="For format records: which column is what, such as instruction=question,output=answer.",
)
ALLOW_HTTP_OPTION = click.option(
    "--allow-http", is_flag=True, help="Fetch http:// files too, and from private addresses: for servers of your own."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")
BASE_OPTION = click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a base model, whose tokens lengths are counted in. [default: words]",
)

Say = Callable[[str], None]


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and end."""
    click.echo(message, err=True)
    sys.exit(code)


@contextmanager
def explained() -> Iterator[None]:
    """End with a sentence and the code of `llamero run` where the data, a file or the user ends the work."""
    from llamero.data.errors import DataError

    try:
        with interrupt_on_signals():
            yield
    except Interrupted:
        fail("Interrupted: start again to go on from here.", ExitCode.INTERRUPTED)
    except (DataError, StorageError) as error:
        fail(str(error), ExitCode.DATA_ERROR)


def is_manifest(targets: Sequence[str]) -> bool:
    """Whether the one target is a job's manifest and not data."""
    return len(targets) == 1 and is_local(targets[0]) and targets[0].lower().endswith((".yaml", ".yml"))


def read_job(file: Path) -> FineTuneJob:
    """A manifest's job. Ends the command where there is a mistake in it."""
    loaded = load_manifest(file)
    for problem in loaded.problems:
        click.echo(str(problem), err=True)
    if loaded.job is None:
        count = sum(p.severity is Severity.ERROR for p in loaded.problems)
        fail(f"{count} mistake{'s' if count != 1 else ''} in the manifest: nothing was started.", ExitCode.BAD_MANIFEST)
    return loaded.job


def make_sources(
    targets: Sequence[str], format_name: str, columns: str | None, allow_http: bool, say: Say
) -> list[DataSource]:
    """A source for each target; what is guessed is said. A prepared folder or a run stands for its records."""
    mapping = _parse_columns(columns)
    sources: list[DataSource] = []
    for target in targets:
        prepared = find_prepared(Path(target)) if is_local(target) else None
        if prepared is not None:
            kept = [prepared / side for side in ("train", "evaluation") if (prepared / side).is_dir()]
            sources += [DataSource(uri=f"{folder}/*.jsonl", format=DataFormat.MESSAGES) for folder in kept]
            continue
        uri = str(local_path(target).expanduser().resolve()) if is_local(target) else target
        sources.append(_make_source(uri, format_name, mapping, allow_http, say))
    return sources


def _make_source(uri: str, format_name: str, columns: ColumnMapping | None, allow_http: bool, say: Say) -> DataSource:
    if columns is not None:
        return DataSource(uri=uri, format=DataFormat.RECORDS, columns=columns)
    if format_name == DataFormat.RECORDS:
        fail("Format records needs --columns, such as instruction=question,output=answer.", ExitCode.BAD_MANIFEST)
    if format_name != "auto":
        return DataSource(uri=uri, format=DataFormat(format_name))
    from llamero.data.guessing import guess_format
    from llamero.storage import list_files

    guess = guess_format(list_files(uri)[0], allow_http)
    say(guess.sentence)
    return DataSource(uri=uri, format=guess.format, columns=guess.columns)


def _parse_columns(text: str | None) -> ColumnMapping | None:
    if text is None:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    known = set(ColumnMapping.model_fields)
    for field, equals, column in pairs:
        if not equals or not column.strip() or field.strip() not in known:
            fail(
                f"--columns: `{field}{equals}{column}` is no FIELD=COLUMN with a field of {', '.join(sorted(known))}.",
                ExitCode.BAD_MANIFEST,
            )
    return ColumnMapping.model_validate({field.strip(): column.strip() for field, _, column in pairs})


def read_yaml(file: Path) -> Any:
    """A YAML file's content. Ends the command where it can't be read."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{file} can't be read: {error.strerror}.", ExitCode.BAD_MANIFEST)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{file} is no YAML: {' '.join(str(error).split())}", ExitCode.BAD_MANIFEST)


def find_prepared(path: Path) -> Path | None:
    """The folder of prepared data that a path names: itself, or a run's; None where it is neither."""
    for folder in (path, path / "data"):
        if read_data_result(folder) is not None:
            return folder
    return None


def read_data_result(folder: Path) -> DataResult | None:
    """What the manifest of a prepared folder says; None where there is none."""
    try:
        return DataResult.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None


def find_run_data(name: str, workdir: Path, run: int | None) -> Path:
    """The prepared data of a folder, a run's folder, or a job below `workdir` (its newest run, or that
    number). Ends the command where there is none."""
    found = find_prepared(Path(name))
    if found is not None:
        return found
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        folder = workdir / name
        numbers = [
            n for p in (folder.iterdir() if folder.is_dir() else []) if (n := parse_run_name(p.name)) is not None
        ]
        for number in [run] if run is not None else sorted(numbers, reverse=True):
            data = RunLayout(workdir, name, number).data
            if read_data_result(data) is not None:
                return data
    which = f" run {run}" if run is not None else ""
    fail(
        f"{name}{which} is neither a folder of prepared data, nor a run's, nor a job with one below {workdir}: prepare some with "
        "`llamero data prepare`.",
        ExitCode.BAD_MANIFEST,
    )

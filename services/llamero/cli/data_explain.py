"""`llamero data explain`: what became of one record, from its place in a source's file to the part that it is in, or the step that dropped it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llamero.cli.data_inputs import JSON_OPTION, explained, find_run_data
from llamero.cli.display import format_number
from llamero.cli.run import ExitCode

if TYPE_CHECKING:
    from llamero.data.lineage import Explained

SHOWN_CHARACTERS = 600


@click.command()
@click.argument("run")
@click.option("--record", required=True, help="A record's id or the beginning of one, `source:line`, or `file:line`.")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs keep their files.",
)
@click.option("--run", "number", type=int, help="With a job's name: which run. [default: the newest with data]")
@JSON_OPTION
def explain(run: str, record: str, workdir: Path, number: int | None, as_json: bool) -> None:
    """Tell the story of a record of RUN: a prepared folder, a run's folder, or a job's name.

    Ends with 0 found, 2 no such run, 3 no such record.
    """
    from llamero.data.lineage import explain as find

    with explained():
        explanation = find(find_run_data(run, workdir, number), record)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=2, ensure_ascii=False, default=lambda o: o.to_json_dict()))
    else:
        click.echo("\n\n".join(tell(found) for found in explanation.found))
    if explanation.sentence:
        click.echo(explanation.sentence, err=True)
    if not explanation.found:
        raise SystemExit(ExitCode.DATA_ERROR)


def tell(found: "Explained") -> str:
    """A record's story as lines of text."""
    facts: list[tuple[str, str]] = [
        ("id", found.id),
        ("source", f"{found.source}, {found.file}, record {found.line}"),
        ("came past", ", ".join(found.steps)),
        ("changed by", ", ".join(found.changed_by)),
        (
            "outcome",
            f"{found.outcome}, {found.side} in {found.part}"
            if found.outcome == "kept"
            else f"rejected: {found.reason}",
        ),
    ]
    if len(found.examples) > 1:
        facts.append(("examples", ", ".join(found.examples)))
    if found.step is not None:
        profile = f", of the profile {found.step.profile}" if found.step.profile else ""
        facts.append(("by", f"step {found.step.number}, {found.step.kind} ({found.step.place}{profile})"))
    if found.rule:
        figures = [
            f"{word} {format_number(value)}"
            for word, value in (("found", found.value), ("wanted", found.threshold))
            if value is not None
        ]
        facts.append(("rule", ", ".join([found.rule, *figures])))
    if found.repeats:
        same = found.repeats
        facts.append(
            (
                "same as",
                f"record {same.get('line')} of {same.get('file')} (source {same.get('source')}), id {same.get('id', '')}",
            )
        )
    if found.scores:
        facts.append(("scores", ", ".join(f"{name} {value:g}" for name, value in sorted(found.scores.items()))))
    width = max(len(name) for name, _ in facts)
    lines = [found.detail, *(f"  {name.ljust(width)}  {value}" for name, value in facts if value)]
    text = found.text if len(found.text) <= SHOWN_CHARACTERS else found.text[: SHOWN_CHARACTERS - 1] + "…"
    return "\n".join([*lines, *(f"  | {_clean(line)}" for line in text.splitlines())])


def _clean(line: str) -> str:
    """Without control characters: a record's text must not write to the terminal by itself."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)

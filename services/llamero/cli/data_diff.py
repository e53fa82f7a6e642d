"""`llamero data diff`: what was added, removed and changed between two versions of data."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from llamero.cli.data_inputs import (
    ALLOW_HTTP_OPTION,
    COLUMNS_OPTION,
    FORMAT_OPTION,
    JSON_OPTION,
    explained,
    find_prepared,
    make_sources,
)
from llamero.cli.data_tables import format_table
from llamero.cli.display import Display, make_display
from llamero.spec.progress import Progress
from llamero.storage import is_local

if TYPE_CHECKING:
    from llamero.data.comparing import Difference, Entry

SHOWN_CHARACTERS = 100


@click.command()
@click.argument("before")
@click.argument("after")
@FORMAT_OPTION
@COLUMNS_OPTION
@click.option("--examples", type=click.IntRange(0, 100), default=3, show_default=True, help="Examples of each kind.")
@ALLOW_HTTP_OPTION
@JSON_OPTION
def diff(
    before: str, after: str, format_name: str, columns: str | None, examples: int, allow_http: bool, as_json: bool
) -> None:
    """Compare two files, folders, prepared folders or runs: records added, removed and changed.

    Two records are the same when their texts are, apart from case, blanks and Markdown's marks. One is changed when its prompt stays and
    its answer does not, or when it keeps its source's id. Ends with 0 however much differs, 2 wrong options, 3 data error.
    """
    from llamero.data.comparing import compare

    with explained(), make_display(Console(stderr=True)) as display:
        sides = [_open(name, format_name, columns, allow_http, display) for name in (before, after)]
        found = compare(sides[0], sides[1], examples, lambda rows: display.show(Progress("Comparing", "records", rows)))
    if as_json:
        click.echo(json.dumps(found.to_json_dict(), indent=2, ensure_ascii=False))
        return
    print_difference(found, before, after)


def _open(
    name: str, format_name: str, columns: str | None, allow_http: bool, display: Display
) -> "Callable[[], Iterator[Entry]]":
    prepared = find_prepared(Path(name)) if is_local(name) else None
    if prepared is not None:
        return partial(_read_prepared, prepared)
    [source] = make_sources([name], format_name, columns, allow_http, display.say)
    return partial(_read_source, source, allow_http)


def _read_source(source: Any, allow_http: bool) -> "Iterator[Entry]":
    from llamero.data.comparing import Entry, hash_id
    from llamero.data.looking import read_candidates

    for found in read_candidates(source, allow_http):
        record = found.record
        yield Entry(
            int.from_bytes(found.content_hash[:8], "big"),
            int.from_bytes(found.prompt_hash, "big"),
            hash_id(str(record.meta.get("sourceId", ""))),
            f"{record.file}:{record.line}",
            record.prompt,
            record.answer,
        )


def _read_prepared(folder: Path) -> "Iterator[Entry]":
    """The records of a prepared folder; of one in chunks its first alone."""
    import orjson

    from llamero.data.comparing import Entry, hash_id
    from llamero.data.content import hash_content, hash_prompt
    from llamero.spec.records import Conversation

    for side in ("train", "evaluation"):
        for path in sorted((folder / side).glob("part-*.jsonl")):
            with path.open("rb") as lines:
                for line in lines:
                    record = Conversation.from_dict(orjson.loads(line))
                    if record.chunk:
                        continue
                    given = str(record.meta.get("input", ""))
                    is_changed = record.chunk is None and "changedBy" in record.meta
                    digest = (
                        hash_content(record.messages, given)
                        if is_changed
                        else bytes.fromhex(record.id.partition("_")[0])
                    )
                    yield Entry(
                        int.from_bytes(digest[:8], "big"),
                        int.from_bytes(hash_prompt(record.messages, given), "big"),
                        hash_id(str(record.meta.get("sourceId", ""))),
                        f"{record.file}:{record.line}",
                        next((m.content for m in record.messages if m.role == "user"), ""),
                        record.messages[-1].content,
                    )


def print_difference(found: "Difference", before: str, after: str) -> None:
    """Counts as a table, then examples."""
    rows = [
        ("before", found.before),
        ("after", found.after),
        ("same", found.same),
        ("added", found.added),
        ("removed", found.removed),
        ("changed: same prompt, other answer", found.changed_answer),
        ("changed: same source id", found.changed_source),
        ("repeats before, not counted above", found.repeated_before),
        ("repeats after, not counted above", found.repeated_after),
    ]
    click.echo(format_table([f"{before} → {after}", "records"], [[name, f"{count:,}"] for name, count in rows]) + "\n")
    for sign, entries in (("+", found.added_examples), ("-", found.removed_examples)):
        for entry in entries:
            click.echo(f"{sign} {entry.place}  {_shorten(entry.question)}  →  {_shorten(entry.answer)}")
    for change in found.changed_examples:
        click.echo(f"~ {change.before.place} → {change.after.place}  {_shorten(change.after.question)}")
        click.echo(f"    - {_shorten(change.before.answer)}")
        click.echo(f"    + {_shorten(change.after.answer)}")


def _shorten(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"

"""The tasks `set`, one of a round of a step across records, and `refine`, a run of record steps on what is left of a shard."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from numpy.typing import NDArray

from llamero.data.applying import Outcome, open_applier
from llamero.data.clean import measure_records
from llamero.data.dropping import read_dropped
from llamero.data.folders import RecordWriter, load_rows, open_tokens
from llamero.data.measure import Measured, Unmeasured, open_measure
from llamero.data.rejections import Tally, describe_rejected
from llamero.data.scoring import ScoreCounts
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record
from llamero.data.steps.registry import find_set_task
from llamero.data.taskfiles import (
    RECORDS_FILE,
    REJECTED_FILE,
    Report,
    Task,
    read_listing,
    write_json,
)
from llamero.model.tokens import TokenSet
from llamero.spec.records import RejectionReason

_CHEAP_BATCH, _COSTLY_BATCH = 512, 4096
"""Records that are put to a run of steps at once; those that ask models do many at a time."""


def do_set_task(task: Task, report: Report, files: SharedFiles) -> Shard:
    """One task of a step across records, by the function that it names."""
    inner = task["step"]
    function = find_set_task(inner["do"])
    return files.commit(task["folder"], lambda partial: function(inner, partial, files, report))


def refine_shard(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Put record steps to the records that are still there, and write those that stay into a folder of their own."""

    def build(folder: Path) -> dict[str, Any]:
        with files.borrow(task["records"]) as source:
            return _refine_shard(task, folder, source, report, files)

    return files.commit(task["folder"], build)


def _refine_shard(task: Task, folder: Path, source: Path, report: Report, files: SharedFiles) -> dict[str, Any]:
    measure, applier = open_measure(task, files), open_applier(task, files)
    dropped = read_dropped(task, read_listing(task), files)
    rows, tokens = load_rows(source), open_tokens(source, measure.has_tokens)
    tally, scores, rejected = Tally(), ScoreCounts(task["scores"]), Counter[str]()
    done = 0

    def reject(record: Record, line: dict[str, Any]) -> None:
        rejected[line["reason"]] += 1
        scores.add(record)
        write_json(refused, line)

    with (
        (source / RECORDS_FILE).open("rb") as lines,
        (folder / REJECTED_FILE).open("wb") as refused,
        RecordWriter(folder, measure.has_tokens) as writer,
    ):
        numbered = enumerate(_read_lines(lines))
        while batch := list(islice(numbered, _COSTLY_BATCH if task["isCostly"] else _CHEAP_BATCH)):
            alive = [record for _, (_, record) in batch if record.row not in dropped.rows]
            outcomes = iter(applier.apply(alive, tally))
            merged = [Outcome(record) if record.row in dropped.rows else next(outcomes) for _, (_, record) in batch]
            again = [o.record for o in merged if o.is_changed and o.step is None]
            anew = iter(measure_records(again, task["system"], measure, task["templateVariants"]))
            for (number, (line, record)), outcome in zip(batch, merged, strict=True):
                if record.row in dropped.rows:
                    reject(record, dropped.reject(record, tally))
                elif outcome.step is not None and outcome.drop is not None:
                    told = describe_rejected(
                        outcome.record, outcome.reason, outcome.drop.detail, outcome.step, outcome.drop
                    )
                    reject(outcome.record, told)
                elif outcome.record is record:
                    writer.copy(line, rows[number], tokens, number)
                elif not outcome.is_changed:
                    prompt = int(rows[number]["prompt"]).to_bytes(8, "big")
                    writer.add(outcome.record, _recall(rows[number], tokens, number), prompt)
                elif isinstance(measured := next(anew), Unmeasured):
                    tally.drop(task["last"], RejectionReason.BAD_TURNS)
                    reject(
                        outcome.record, describe_rejected(outcome.record, RejectionReason.BAD_TURNS, measured.detail)
                    )
                else:
                    writer.add(outcome.record, measured)
            done += len(batch)
            report(done)
    return {
        "records": len(writer),
        "rejected": dict(sorted(rejected.items())),
        "tally": tally.to_json(),
        "scores": scores.to_json(),
        "asked": applier.take_accounts(),
    }


def _read_lines(lines: Iterable[bytes]) -> Iterator[tuple[bytes, Record]]:
    for line in lines:
        yield line, Record.from_dict(orjson.loads(line))


def _recall(row: NDArray, tokens: TokenSet | None, number: int) -> Measured:
    """The measure of a record whose text did not change."""
    ids, mask = tokens[number] if tokens is not None else (None, None)
    return Measured(int(row["input"]), int(row["output"]), ids, mask)

"""The task `write`: what a shard keeps, cut to the sequence length, on the side that it belongs to; and all that it does not keep."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson
from numpy.typing import NDArray

from llamero.data.clean import with_system
from llamero.data.dropping import read_dropped
from llamero.data.folders import load_rows, open_tokens
from llamero.data.lengths import LengthCounts, Statistics, find_domain
from llamero.data.measure import TokenMeasure, open_measure
from llamero.data.readers.draft import RowError
from llamero.data.rejections import CUT, Tally, describe_rejected, merge_rejections
from llamero.data.scoring import ScoreCounts
from llamero.data.selection import find_held_out
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record
from llamero.data.taskfiles import (
    EVALUATION,
    RECORDS_FILE,
    REJECTED_FILE,
    REPORT_ROWS,
    SAMPLES_PER_REASON,
    SIDES,
    TOKENS_FOLDER,
    TRAIN,
    Report,
    Task,
    read_listing,
    write_json,
)
from llamero.model.errors import TemplateError
from llamero.model.tokens import TokenSet, TokenWriter
from llamero.spec.records import Conversation, Message, RejectionReason

if TYPE_CHECKING:
    from llamero.data.chunks import Cut

_COUNTS = ("records", "examples", "tokens", "targetTokens")


def write_shard(task: Task, report: Report, files: SharedFiles) -> Shard:
    """Lay out what a shard keeps: examples and tokens of each side, and all its rejections in the rows' order.

    For an arm of data.controls (`isArm`) the training side alone, and no rejections.
    """

    def build(folder: Path) -> dict[str, Any]:
        with files.borrow(task["records"]) as source:
            return _Writing(task, folder, source, files, report).write()

    return files.commit(task["folder"], build)


@dataclass
class _Example:
    """A piece of a record as it is written; `ids` and `mask` are None where there are no tokens."""

    messages: tuple[Message, ...]
    ids: NDArray | None
    mask: NDArray | None
    first_turn: int = 0
    is_truncated: bool = False


@dataclass
class _Counts:
    """What a side holds, by the names of `SplitCounts`."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))

    def add(self, examples: list[_Example], input_length: int, output_length: int) -> None:
        self.counts["records"] += 1
        self.counts["examples"] += len(examples)
        for example in examples:
            is_counted = example.ids is not None and example.mask is not None
            self.counts["tokens"] += len(example.ids) if is_counted else input_length + output_length  # type: ignore[arg-type]
            self.counts["targetTokens"] += int(example.mask[1:].sum()) if is_counted else output_length  # type: ignore[index]


class _Writing:
    """One shard on its way into its sides."""

    def __init__(self, task: Task, folder: Path, source: Path, files: SharedFiles, report: Report) -> None:
        self.task, self.folder, self.source, self.files, self.report = task, folder, source, files, report
        self.has_tokens, self.is_arm = task["tokenizer"] is not None, task["isArm"]
        self.tally, self.scores, self.statistics = Tally(), ScoreCounts(task["scores"]), Statistics()
        self.sides = {side: _Counts() for side in SIDES}
        self.too_long = LengthCounts()
        self.dropped_pairs = 0
        self.reasons: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []

    def write(self) -> dict[str, Any]:
        with ExitStack() as stack:
            self.writers = {
                side: stack.enter_context(_SideWriter(self.folder / side, self.has_tokens)) for side in SIDES
            }
            lines = self._write_records()
            if self.is_arm:
                for _ in lines:
                    pass
            else:
                self._write_rejections(lines)
        return {
            "sides": {side: counts.counts for side, counts in self.sides.items()},
            "rejected": dict(sorted(self.reasons.items())),
            "samples": self.samples,
            "statistics": self.statistics.to_json(),
            "tooLong": self.too_long.to_json(),
            "droppedPairs": self.dropped_pairs,
            "tally": self.tally.to_json(),
            "scores": self.scores.to_json(),
        }

    def _write_records(self) -> Iterator[dict[str, Any]]:
        """Write what is kept, and yield the lines of what is not, in the rows' order."""
        task = self.task
        rows, tokens = load_rows(self.source), open_tokens(self.source, self.has_tokens)
        dropped = read_dropped(task, read_listing(task), self.files)
        held_out = find_held_out(rows["prompt"], task["seed"], task["evaluationFraction"]).tolist()
        with (self.source / RECORDS_FILE).open("rb") as lines:
            for number, (line, place) in enumerate(zip(lines, rows["row"].tolist(), strict=True)):
                if number % REPORT_ROWS == 0:
                    self.report(number)
                is_dropped = place in dropped.rows
                if self.is_arm and (is_dropped or held_out[number]):
                    continue
                record = Record.from_dict(orjson.loads(line))
                self.scores.add(record)
                if is_dropped:
                    yield dropped.reject(record, self.tally)
                    continue
                try:
                    examples = self._cut(record, rows[number], tokens, number)
                except (RowError, TemplateError) as error:
                    yield self._reject_long(record, rows[number], error)
                    continue
                self._keep(record, rows[number], examples, EVALUATION if held_out[number] else TRAIN)

    def _cut(self, record: Record, row: NDArray, tokens: TokenSet | None, number: int) -> list[_Example]:
        """The record as examples that fit. Raises RowError or TemplateError where none does."""
        messages = with_system(record.messages, self.task["system"])
        if tokens is None:
            return [_Example(messages, None, None)]
        ids, mask = tokens[number]
        if len(ids) <= self.task["sequenceLength"]:
            return [_Example(messages, ids, mask)]
        cut = self._cut_long(record, messages, ids, mask)
        self.dropped_pairs += cut.dropped_pairs
        record.meta.update({"droppedPairs": cut.dropped_pairs} if cut.dropped_pairs else {})
        return [_Example(e.messages, e.encoded.ids, e.encoded.mask, e.first_turn, e.is_truncated) for e in cut.examples]

    def _cut_long(self, record: Record, messages: tuple[Message, ...], ids: NDArray, mask: NDArray) -> "Cut":
        # Here, since these import what knows tokenizers, and few shards hold a record that is too long.
        from llamero.data.chunks import cut_record
        from llamero.model.templates import Encoded

        measure = open_measure(self.task, self.files)
        assert isinstance(measure, TokenMeasure)
        identity = bytes.fromhex(record.id)
        return cut_record(
            messages,
            Encoded(ids, mask),
            self.task["sequenceLength"],
            self.task["longRecords"],
            lambda pieces: measure.encode(pieces, identity),
        )

    def _reject_long(self, record: Record, row: NDArray, error: Exception) -> dict[str, Any]:
        reason = error.reason if isinstance(error, RowError) else RejectionReason.BAD_TURNS
        if reason == RejectionReason.TOO_LONG:
            self.too_long.add(int(row["input"]) + int(row["output"]))
        self.tally.drop(CUT, reason)
        return describe_rejected(record, reason, str(error))

    def _keep(self, record: Record, row: NDArray, examples: list[_Example], side: str) -> None:
        lengths = int(row["input"]), int(row["output"])
        self.sides[side].add(examples, *lengths)
        self.statistics.of(find_domain(record.tags, self.task["domains"])).add(*lengths)
        is_chunked = len(examples) > 1 or "droppedPairs" in record.meta
        meta = dict(record.meta)
        if record.input:
            meta["input"] = record.input
        if record.scores:
            meta["scores"] = record.scores
        for number, example in enumerate(examples):
            conversation = Conversation(
                id=f"{record.id}_{example.first_turn}" if is_chunked else record.id,
                source=record.source,
                file=record.file,
                line=record.line,
                messages=example.messages,
                tags=record.tags,
                chunk=number if is_chunked else None,
                meta=meta | {"truncated": True} if example.is_truncated else meta,
            )
            self.writers[side].add(conversation, example.ids, example.mask)

    def _write_rejections(self, own: Iterator[dict[str, Any]]) -> None:
        """All rejections of the shard, its earlier ones among them, counted by reason, with the first few of each."""
        with ExitStack() as stack, (self.folder / REJECTED_FILE).open("wb") as out:
            earlier = [
                map(orjson.loads, stack.enter_context((self._find_rejected(uri) / REJECTED_FILE).open("rb")))
                for uri in self.task["rejected"]
            ]
            for line in merge_rejections([*earlier, own]):
                reason = line["reason"]
                self.reasons[reason] += 1
                if self.reasons[reason] <= SAMPLES_PER_REASON:
                    self.samples.append(line)
                write_json(out, line)

    def _find_rejected(self, uri: str) -> Path:
        return self.source if uri == self.task["records"] else self.files.fetch(uri, [REJECTED_FILE])


class _SideWriter:
    """Examples and tokens of one side of the split; files appear with the first one."""

    def __init__(self, folder: Path, has_tokens: bool) -> None:
        self._folder, self._has_tokens = folder, has_tokens
        self._records: IO[bytes] | None = None
        self._tokens: TokenWriter | None = None

    def add(self, conversation: Conversation, ids: NDArray | None, mask: NDArray | None) -> None:
        if self._records is None:
            self._folder.mkdir()
            self._records = (self._folder / RECORDS_FILE).open("wb")
            if self._has_tokens:
                self._tokens = TokenWriter(self._folder / TOKENS_FOLDER).__enter__()
        write_json(self._records, conversation.to_dict())
        if self._tokens is not None and ids is not None and mask is not None:
            self._tokens.append(ids, mask, conversation.id)

    def __enter__(self) -> "_SideWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._records is not None:
            self._records.close()
        if self._tokens is not None:
            self._tokens.__exit__(*error)

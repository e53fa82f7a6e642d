"""The formats, each by two functions: rows out of a stream, and a draft of a conversation out of a row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llamero.data.readers.alpaca import parse_alpaca
from llamero.data.readers.dialog import parse_dialog
from llamero.data.readers.draft import Draft as Draft
from llamero.data.readers.draft import RowError as RowError
from llamero.data.readers.generated import parse_generated
from llamero.data.readers.messages import parse_messages
from llamero.data.readers.records import parse_record
from llamero.data.readers.seed_tasks import parse_seed_task, read_seed_rows
from llamero.data.readers.sharegpt import parse_sharegpt
from llamero.data.readers.stackexchange import parse_question, read_questions
from llamero.data.rows import Row, read_lines, read_rows
from llamero.spec.job import ColumnMapping, DataFormat, DataSource


@dataclass(frozen=True)
class Reader:
    """`read_rows(stream, name, scratch)` streams a file's rows; `parse(row, source)` drafts a conversation or raises RowError.

    The format of a source with `generate` is that of its seeds: its own rows are parsed as what generating leaves.
    """

    read_rows: Callable[[IO[bytes], str, Path], Iterator[Row]]
    parse_row: Callable[[Any, DataSource], Draft]
    is_html: bool = False

    def parse(self, row: Any, source: DataSource) -> Draft:
        return self.parse_row(row, source) if source.generate is None else parse_generated(row)


READERS: dict[DataFormat, Reader] = {
    DataFormat.ALPACA: Reader(lambda stream, name, _: read_rows(stream, name), lambda row, _: parse_alpaca(row)),
    DataFormat.SHAREGPT: Reader(lambda stream, name, _: read_rows(stream, name), lambda row, _: parse_sharegpt(row)),
    DataFormat.MESSAGES: Reader(lambda stream, name, _: read_rows(stream, name), lambda row, _: parse_messages(row)),
    DataFormat.STACKEXCHANGE: Reader(read_questions, lambda row, _: parse_question(row), is_html=True),
    DataFormat.DIALOG: Reader(
        lambda stream, name, _: read_lines(stream, name), lambda row, source: parse_dialog(row, source.profile)
    ),
    DataFormat.SEED_TASKS: Reader(
        lambda stream, name, _: read_seed_rows(stream, name), lambda row, _: parse_seed_task(row)
    ),
    DataFormat.RECORDS: Reader(
        lambda stream, name, _: read_rows(stream, name),
        lambda row, source: parse_record(row, source.columns or ColumnMapping()),
    ),
}

"""The folder of records that `clean` and `refine` leave: the records themselves, a table with a row for each, and their tokens."""

from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from llamero.data.content import hash_prompt
from llamero.data.measure import Measured
from llamero.data.steps.record import Record
from llamero.data.steps.view import RECORDS_FILE, ROWS_DTYPE, ROWS_FILE
from llamero.data.taskfiles import TOKENS_FOLDER, load_array, write_record
from llamero.model.tokens import TokenSet, TokenWriter


class RecordWriter:
    """Writes such a folder, records in the rows' order; a context manager."""

    def __init__(self, folder: Path, has_tokens: bool) -> None:
        self._folder = folder
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._tokens = TokenWriter(folder / TOKENS_FOLDER) if has_tokens else None

    def __enter__(self) -> Self:
        self._records: IO[bytes] = (self._folder / RECORDS_FILE).open("wb")
        if self._tokens is not None:
            self._tokens.__enter__()
        return self

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, record: Record, measured: Measured, prompt: bytes | None = None) -> None:
        """Add a record that has an id; `prompt` is the hash of its prompt where it is known."""
        prompt = prompt or hash_prompt(record.messages, record.input)
        identity = int(record.id, 16)
        self._rows.append(
            (
                record.row,
                record.line,
                identity >> 64,
                identity & 0xFFFFFFFFFFFFFFFF,
                int.from_bytes(prompt, "big"),
                measured.input,
                measured.output,
            )
        )
        write_record(self._records, record)
        if self._tokens is not None and measured.ids is not None and measured.mask is not None:
            self._tokens.append(measured.ids, measured.mask, record.id)

    def copy(self, line: bytes, row: NDArray, tokens: TokenSet | None, number: int) -> None:
        """Add a record as it stands in another such folder: its line, its row and its place among the tokens."""
        self._rows.append(row.item())
        self._records.write(line)
        if self._tokens is not None and tokens is not None:
            ids, mask = tokens[number]
            self._tokens.append(ids, mask, f"{row['hi']:016x}{row['lo']:016x}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._records.close()
        if self._tokens is not None:
            self._tokens.__exit__(kind, error, None)
        if kind is None:
            np.save(self._folder / ROWS_FILE, np.array(self._rows, dtype=ROWS_DTYPE))


def open_tokens(folder: Path, has_tokens: bool) -> TokenSet | None:
    """The tokens of such a folder, where there are some."""
    return TokenSet.open(folder / TOKENS_FOLDER) if has_tokens else None


def load_rows(folder: Path) -> NDArray:
    """The table of such a folder: ROWS_DTYPE [records]."""
    return load_array(folder / ROWS_FILE)

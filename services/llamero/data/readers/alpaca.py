"""Alpaca: rows of `instruction`, `input` (may be empty or absent) and `output`."""

from typing import Any

from llamero.data.readers.draft import Draft, make_exchange, need_object, read_text

# Some files of this family write the lack of an input out.
_NO_INPUT = frozenset({"<noinput>", "<no input>", "[noinput]"})


def parse_alpaca(row: Any) -> Draft:
    """The row's instruction as a user turn, its output as the answer, its input beside. Raises RowError."""
    row = need_object(row)
    instruction, output = read_text(row, "instruction"), read_text(row, "output")
    given = read_text(row, "input", required=False)
    return make_exchange(instruction, "" if given.strip().lower() in _NO_INPUT else given, output)

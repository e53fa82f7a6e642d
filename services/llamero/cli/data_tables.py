"""Tables of figures as plain text: names to the left, figures to the right, the last column running on."""

from collections.abc import Sequence


def format_table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, runs_on: bool = False) -> str:
    """Columns set by spaces, with a rule below the heading; the first `left` are set left, the others right, the last left where it runs on."""
    cells = [list(heading), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]

    def set_row(row: Sequence[str]) -> str:
        parts = [
            cell.ljust(width) if column < left or (runs_on and column == len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("─" * width for width in widths[: -1 if runs_on else None])
    return "\n".join([set_row(cells[0]), rule, *(set_row(row) for row in cells[1:])])

"""Keys and values of the rows of a batch, aligned at the right: rows may join and leave between two steps.

Every row's last token stands in the last column; a shorter row has empty columns at the left, which its mask leaves out. What lies in
empty columns is of no meaning, but finite: a weight of zero does not undo what is no number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64


class RowLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, columns, width]: a window on buffers with room at the end, and below for more rows.

    Columns are added at the end, rows that join are written below, a row that leaves gives its place to the last one: none of it moves the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.start = self.end = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    @property
    def columns(self) -> int:
        return self.end - self.start

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rows = key_states.shape[0]
        new = key_states.shape[-2]
        if self._keys is None or self._values is None or self._keys.shape[2] < self.end + new:
            self._reserve(self.rows, self.columns + new, self.columns, key_states, value_states)
        assert self._keys is not None and self._values is not None
        self._keys[: self.rows, :, self.end : self.end + new] = key_states
        self._values[: self.rows, :, self.end : self.end + new] = value_states
        self.end += new
        return self._show()

    def get_seq_length(self) -> int:
        return self.columns

    def join(self, other: "RowLayer") -> None:
        """Add another cache's rows below these."""
        rows, columns = self.rows + other.rows, max(self.columns, other.columns)
        assert self._keys is not None and self._values is not None
        if self._keys.shape[0] < rows or self.end < columns:
            self._reserve(rows, columns, columns, self.keys, self.values)
        self._keys[self.rows : rows, :, self.end - other.columns : self.end] = other.keys
        self._values[self.rows : rows, :, self.end - other.columns : self.end] = other.values
        self.rows, self.start = rows, self.end - columns
        self._show()

    def keep(self, moves: Sequence[tuple[int, int]], rows: int, columns: int) -> None:
        """Let each of `moves` (to, from) take another row's place, then keep the first `rows`, and of the columns the last `columns`."""
        assert self._keys is not None and self._values is not None
        self.start = self.end - columns
        for to, source in moves:
            self._keys[to, :, self.start : self.end] = self._keys[source, :, self.start : self.end]
            self._values[to, :, self.start : self.end] = self._values[source, :, self.start : self.end]
        self.rows = rows
        self._show()

    def _reserve(self, rows: int, columns: int, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Larger buffers for so many rows and columns, in which the window ends at column `end`. `keys` and `values` tell the shape."""
        room = columns + max(SPARE_COLUMNS, columns // 2)
        held = self.columns
        larger = [t.new_zeros((rows, t.shape[1], room, t.shape[3])) for t in (keys, values)]
        if held and self._keys is not None and self._values is not None:
            for new, old in zip(larger, (self._keys, self._values), strict=True):
                new[: self.rows, :, end - held : end] = old[: self.rows, :, self.start : self.end]
        self._keys, self._values = larger
        self.start, self.end = end - held, end

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._keys is not None and self._values is not None
        self.keys = self._keys[: self.rows, :, self.start : self.end]
        self.values = self._values[: self.rows, :, self.start : self.end]
        return self.keys, self.values


class RowCache(Cache):
    """The cache of a batch: one RowLayer for each of the model's layers."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowLayer)

    @property
    def columns(self) -> int:
        """Tokens of the longest row."""
        return self.layers[0].columns if self.layers else 0

    @torch.inference_mode()
    def join(self, other: "RowCache") -> None:
        """Add another cache's rows below these."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)

    @torch.inference_mode()
    def keep(self, staying: Sequence[int], columns: int) -> list[int]:
        """Keep these rows (by index), of which the longest has `columns` tokens; the order that they stand in afterwards."""
        order = _fill_holes(staying)
        moves = [(to, source) for to, source in enumerate(order) if to != source]
        for layer in self.layers:
            layer.keep(moves, len(order), columns)
        return order


def _fill_holes(staying: Sequence[int]) -> list[int]:
    """The rows that stay, in an order that moves as few as possible: the last ones into the places of those that leave."""
    count = len(staying)
    order = {row: row for row in staying if row < count}
    late = [row for row in staying if row >= count]
    for place in range(count):
        if place not in order:
            order[place] = late.pop()
    return [order[place] for place in range(count)]

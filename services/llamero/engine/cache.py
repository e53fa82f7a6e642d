"""Keys and values of the rows of a batch, aligned at the right: rows may join and leave between two steps.

Every row's last token stands in the last column; a shorter row has empty columns at the left, which its mask leaves out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64


class RowLayer(DynamicLayer):
    """One layer's keys and values, [rows, heads, columns, width], in a buffer that grows by more than one column at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.columns + key_states.shape[-2]
        self._keys = _with_room(self._keys, key_states, self.columns, end)
        self._values = _with_room(self._values, value_states, self.columns, end)
        self._keys[:, :, self.columns : end] = key_states
        self._values[:, :, self.columns : end] = value_states
        self.columns = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.columns

    def join(self, other: "RowLayer") -> None:
        """Add another cache's rows below these."""
        columns = max(self.columns, other.columns)
        self._keys = _stacked(self.keys, other.keys, columns)
        self._values = _stacked(self.values, other.values, columns)
        self._point_at(columns)

    def keep(self, rows: torch.Tensor, columns: int) -> None:
        """Keep these rows, and of the columns the last `columns`."""
        first = self.columns - columns
        self._keys = _copied(self._keys, rows, first, self.columns)
        self._values = _copied(self._values, rows, first, self.columns)
        self._point_at(columns)

    def _point_at(self, columns: int) -> None:
        assert self._keys is not None and self._values is not None
        self.columns = columns
        self.keys, self.values = self._keys[:, :, :columns], self._values[:, :, :columns]


def _with_room(buffer: torch.Tensor | None, new: torch.Tensor, used: int, end: int) -> torch.Tensor:
    if buffer is not None and buffer.shape[2] >= end:
        return buffer
    rows, heads, _, width = new.shape
    larger = new.new_zeros((rows, heads, end + max(SPARE_COLUMNS, end // 4), width))
    if buffer is not None:
        larger[:, :, :used] = buffer[:, :, :used]
    return larger


def _stacked(above: torch.Tensor, below: torch.Tensor, columns: int) -> torch.Tensor:
    """Both right-aligned in one buffer. Empty columns are zeros: whatever a mask leaves out must still be finite."""
    rows, heads, _, width = above.shape
    out = above.new_zeros((rows + below.shape[0], heads, columns + SPARE_COLUMNS, width))
    out[:rows, :, columns - above.shape[2] : columns] = above
    out[rows:, :, columns - below.shape[2] : columns] = below
    return out


def _copied(buffer: torch.Tensor | None, rows: torch.Tensor, first: int, end: int) -> torch.Tensor:
    assert buffer is not None
    kept = buffer[rows, :, first:end]
    out = kept.new_zeros((kept.shape[0], kept.shape[1], end - first + SPARE_COLUMNS, kept.shape[3]))
    out[:, :, : end - first] = kept
    return out


class RowCache(Cache):
    """The cache of a batch: one RowLayer for each of the model's layers."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowLayer)

    @property
    def columns(self) -> int:
        """Tokens of the longest row."""
        return self.layers[0].columns if self.layers else 0

    def join(self, other: "RowCache") -> None:
        """Add another cache's rows below these."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)

    def keep(self, rows: Sequence[int], columns: int) -> None:
        """Keep these rows (by index), of which the longest has `columns` tokens."""
        index = torch.tensor(list(rows))
        for layer in self.layers:
            layer.keep(index, columns)

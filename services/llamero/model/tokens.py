"""Tokenised examples on disk: written once, read through memory maps by training and evaluation.

A folder holds `input_ids.bin` (uint32) and `mask.bin` (uint8, 1 = trained) of all examples end to end, `offsets.npy` (int64,
one more entry than examples) and `ids.json` (the examples' record ids). `offsets.npy` is written last: a folder without it
was not finished. How text becomes tokens is the templates' business.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

IDS_FILE = "input_ids.bin"
MASK_FILE = "mask.bin"
OFFSETS_FILE = "offsets.npy"
RECORDS_FILE = "ids.json"

_BUFFER_BYTES = 1 << 20


class TokenWriter:
    """Writes one folder of examples; a context manager. An exception inside leaves the folder unfinished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = [0]
        self._records: list[str] = []
        self.target_tokens = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / OFFSETS_FILE).unlink(missing_ok=True)
        self._ids: IO[bytes] = (self._folder / IDS_FILE).open("wb", buffering=_BUFFER_BYTES)
        self._mask: IO[bytes] = (self._folder / MASK_FILE).open("wb", buffering=_BUFFER_BYTES)
        return self

    def __len__(self) -> int:
        return len(self._records)

    def append(self, ids: ArrayLike, mask: ArrayLike, record_id: str) -> None:
        """Add one example: token ids [n] and its mask [n]. Raises ValueError where they are empty or differ in length."""
        id_row, mask_row = np.asarray(ids, dtype=np.uint32), np.asarray(mask, dtype=np.uint8)
        if id_row.ndim != 1 or id_row.shape != mask_row.shape or not len(id_row):
            raise ValueError(f"example {record_id} has {id_row.shape} ids and {mask_row.shape} mask entries")
        self._ids.write(id_row.tobytes())
        self._mask.write(mask_row.tobytes())
        self._offsets.append(self._offsets[-1] + len(id_row))
        self._records.append(record_id)
        self.target_tokens += int(np.count_nonzero(mask_row[1:]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ids.close()
        self._mask.close()
        if kind is not None:
            return
        (self._folder / RECORDS_FILE).write_text(json.dumps(self._records), encoding="utf-8")
        np.save(self._folder / OFFSETS_FILE, np.asarray(self._offsets, dtype=np.int64))


class _Part:
    """One folder, mapped."""

    def __init__(self, folder: Path) -> None:
        if not (folder / OFFSETS_FILE).is_file():
            raise FileNotFoundError(f"{folder} holds no finished token set: {OFFSETS_FILE} is missing")
        self.folder = folder
        self.offsets: NDArray[np.int64] = np.load(folder / OFFSETS_FILE, allow_pickle=False)
        self.ids = _map(folder / IDS_FILE, np.dtype("<u4"), int(self.offsets[-1]))
        self.mask = _map(folder / MASK_FILE, np.dtype("u1"), int(self.offsets[-1]))

    def __len__(self) -> int:
        return len(self.offsets) - 1


def _map(path: Path, dtype: np.dtype, count: int) -> NDArray:
    size = path.stat().st_size
    if size != count * dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes where its offsets say {count * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r") if count else np.zeros(0, dtype=dtype)


class TokenSet:
    """Examples of one or more folders in order; `set[i]` is (ids uint32 [n], mask uint8 [n]), views into the files."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = list(parts)
        self._first = np.cumsum([0, *(len(p) for p in parts)])
        self.lengths: NDArray[np.int64] = (
            np.concatenate([np.diff(p.offsets) for p in parts]) if parts else np.zeros(0, np.int64)
        )

    @classmethod
    def open(cls, folders: Path | Sequence[Path]) -> "TokenSet":
        """Map the folders. Raises FileNotFoundError for an unfinished one, ValueError where sizes don't match."""
        return cls([_Part(Path(f)) for f in ([folders] if isinstance(folders, (str, Path)) else folders)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, index: int) -> tuple[_Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._parts[part], index - int(self._first[part])

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        part, row = self._locate(int(index))
        start, end = part.offsets[row], part.offsets[row + 1]
        return part.ids[start:end], part.mask[start:end]

    def record_id(self, index: int) -> str:
        """The id of the record that example `index` was made of."""
        part, row = self._locate(int(index))
        if not hasattr(part, "records"):
            part.records = json.loads((part.folder / RECORDS_FILE).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
        return part.records[row]  # type: ignore[attr-defined]

    @property
    def tokens(self) -> int:
        """All tokens of the set."""
        return int(self.lengths.sum())

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Trained tokens per example [n]: masked ones but an example's first, which nothing predicts."""
        counts = [
            np.add.reduceat(p.mask, p.offsets[:-1], dtype=np.int64) - p.mask[p.offsets[:-1]]
            for p in self._parts
            if len(p)
        ]
        return np.concatenate(counts) if counts else np.zeros(0, np.int64)

    @property
    def target_tokens(self) -> int:
        """Trained tokens of the whole set."""
        return int(self.target_lengths.sum())

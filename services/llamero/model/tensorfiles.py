"""Safetensors files without a framework: the shapes of their tensors, and which hold values that are no numbers.

The header is JSON behind its length in eight bytes, the tensors lie behind it (https://github.com/huggingface/safetensors). Types that
numpy has not (bfloat16, the 8-bit floats) are told by their bits: an exponent of all ones is an infinity or no number.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

BLOCK_BYTES = 16 << 20
"""So much of a tensor is in memory at a time."""

_ONES: dict[str, tuple[type[np.generic], int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),  # has no infinities: only all ones is no number
}
"""By type: the integers to look at it as, and the bits that are all set in what is not finite. Others have finite values only."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its key. Raises SafetensorError, OSError."""
    with safe_open(path, framework="np") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 - no mapping


def find_unnumbered(path: Path) -> list[str]:
    """The keys of tensors with an infinity or a value that is no number. Raises SafetensorError, OSError."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return [key for key, told in header.items() if _has_unnumbered(path, 8 + size, told)]


def _has_unnumbered(path: Path, start: int, told: dict[str, Any]) -> bool:
    if told["dtype"] not in _ONES:
        return False
    kind, ones = _ONES[told["dtype"]]
    begin, end = told["data_offsets"]
    mask = kind(ones)
    return any(bool(((block & mask) == mask).any()) for block in _read_blocks(path, start + begin, end - begin, kind))


def _read_blocks(path: Path, offset: int, size: int, kind: type[np.generic]) -> Iterator[Any]:
    with path.open("rb") as stream:
        stream.seek(offset)
        while size > 0:
            data = stream.read(min(size, BLOCK_BYTES))
            if not data:
                raise SafetensorError(f"{path.name} ends before its last tensor")
            size -= len(data)
            yield np.frombuffer(data, dtype=kind)

"""Tensors out of safetensors files as float32 arrays, bfloat16 included; raises WeightsError on anything broken.

https://github.com/huggingface/safetensors#format
"""

import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
MAX_HEADER_BYTES = 100_000_000


class WeightsError(Exception):
    """A file that is no safetensors file, or is cut short."""


def read_tensors(path: Path) -> dict[str, Array]:
    """All tensors of a file."""
    raw = path.read_bytes()
    if len(raw) < 8:
        raise WeightsError(f"Error while deserializing header: HeaderTooSmall ({path.name})")
    (size,) = struct.unpack("<Q", raw[:8])
    if size > MAX_HEADER_BYTES:
        raise WeightsError(f"Error while deserializing header: HeaderTooLarge ({path.name})")
    try:
        header = json.loads(raw[8 : 8 + size])
    except ValueError as error:
        raise WeightsError(f"Error while deserializing header: InvalidHeaderDeserialization ({path.name})") from error
    data = memoryview(raw)[8 + size :]
    if max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0) > len(
        data
    ):
        raise WeightsError(f"Error while deserializing header: MetadataIncompleteBuffer ({path.name})")
    return {name: _read(data, entry) for name, entry in header.items() if name != "__metadata__"}


def _read(data: memoryview, entry: dict[str, object]) -> Array:
    begin, end = entry["data_offsets"]  # type: ignore[misc]
    raw = data[begin:end]
    match entry["dtype"]:
        case "F32":
            flat = np.frombuffer(raw, np.float32)
        case "F16":
            flat = np.frombuffer(raw, np.float16).astype(np.float32)
        case "BF16":
            flat = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        case kind:
            raise WeightsError(f"tensors of type {kind} are not for a tiny Llama")
    return flat.reshape(entry["shape"])  # type: ignore[call-overload, no-any-return]

"""Compressed streams as plain ones: told by the file's suffix, read piece by piece, and watched for bombs.

A bomb is told by its ratio: what unpacks to far more than any text does is refused, wherever it comes from.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import IO, Any, Final

from llamero.storage.errors import Refused

MAX_RATIO: Final = 1000
"""The most bytes that one compressed byte may become, over the whole file so far."""

RATIO_FREE_BYTES: Final = 100_000_000
"""So much comes out before the ratio is looked at: a small file of blanks is no attack."""

_BLOCK_BYTES: Final = 1 << 18
_XZ_MEMORY_BYTES: Final = 256 << 20


def find_packing(name: str) -> str | None:
    """How a file of this name is compressed: gz, bz2, xz, lzma or zst; None where it is not."""
    suffix = name.rsplit("/", 1)[-1].lower().rpartition(".")[2]
    return {"tgz": "gz", "tbz2": "bz2", "txz": "xz"}.get(suffix, suffix if suffix in _OPENERS else None)


def unpack(stream: IO[bytes], packing: str, shown: str, max_ratio: float = MAX_RATIO) -> "UnpackedStream":
    """The plain content of a compressed stream; `shown` names the file in messages. Closing it closes the stream.

    Damage is told by reads as the libraries tell it (OSError, EOFError, zlib.error, LZMAError), a bomb by Refused.
    """
    return UnpackedStream(stream, packing, shown, max_ratio)


class UnpackedStream(io.BufferedReader):
    """A decompressed stream, which can't be sought in."""

    def __init__(self, stream: IO[bytes], packing: str, shown: str, max_ratio: float) -> None:
        super().__init__(_Unpacking(stream, packing, shown, max_ratio), _BLOCK_BYTES)


class _Unpacking(io.RawIOBase):
    def __init__(self, stream: IO[bytes], packing: str, shown: str, max_ratio: float) -> None:
        super().__init__()
        self._stream, self._shown, self._max_ratio = stream, shown, max_ratio
        self._packed = _Counted(stream)
        self._read = _OPENERS[packing](self._packed)
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(min(len(buffer), _BLOCK_BYTES))
        self._size += len(data)
        if self._size > RATIO_FREE_BYTES and self._size > self._max_ratio * self._packed.size:
            raise Refused(
                f"{self._shown} unpacks to more than {self._max_ratio:,.0f} times its size, as no text does: nothing more is read of it."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Counted(io.RawIOBase):
    """The compressed side, counting what was taken of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self.size = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self.size += len(data)
        return data


def _open_gzip(stream: Any) -> Callable[[int], bytes]:
    return gzip.GzipFile(fileobj=stream, mode="rb").read1


def _open_bz2(stream: Any) -> Callable[[int], bytes]:
    return bz2.BZ2File(stream).read1


def _open_xz(stream: Any) -> Callable[[int], bytes]:
    """As lzma.LZMAFile reads, with a bound on the memory that a file's header may ask for."""
    state: dict[str, Any] = {"decoder": lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES), "is_new": True}

    def read(size: int) -> bytes:
        while True:
            decoder = state["decoder"]
            if decoder.eof:
                rest = decoder.unused_data or stream.read(_BLOCK_BYTES)
                rest = rest.lstrip(b"\0")  # padding between streams
                if not rest:
                    return b""
                state["decoder"] = decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
            else:
                rest = stream.read(_BLOCK_BYTES) if decoder.needs_input else b""
                if not rest and decoder.needs_input:
                    if state["is_new"]:
                        return b""
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            state["is_new"] = False
            if data := decoder.decompress(rest, max_length=size):
                return bytes(data)

    return read


def _open_zst(stream: Any) -> Callable[[int], bytes]:
    import pyarrow  # has the codec; takes a moment to import

    # A reader of several frames in a row; what it knows as a file is asked in blocks.
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd").read


_OPENERS: Final[dict[str, Callable[[Any], Callable[[int], bytes]]]] = {
    "gz": _open_gzip,
    "bz2": _open_bz2,
    "xz": _open_xz,
    "lzma": _open_xz,
    "zst": _open_zst,
}

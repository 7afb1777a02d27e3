"""The bytes of a file, decompressed by its suffix as a stream. A file that is cut short or damaged is an error that
says where; the standard library's readers do not know where, and zstandard's takes the cut for the end."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bonsaigpt.errors import DataError, DeviceError

__all__ = ["open_bytes", "plain_suffix"]

_BLOCK = 1 << 17
"""Bytes on disk that are decompressed at once: their text takes a few MB at most."""


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DeviceError("reading .zst needs the package zstandard: pip install 'bonsaigpt[corpora]'") from None
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": _zstd,
}
"""One decompressor takes one stream (member, frame); a file may be several, one after the other."""


def plain_suffix(path: Path) -> str:
    """The suffix without that of a compression, in lower case: ``.jsonl`` of ``a.jsonl.gz``."""
    inner = path.with_suffix("") if path.suffix.lower() in _DECOMPRESSORS else path
    return inner.suffix.lower()


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """A reader of the content, and a function that tells how many bytes of the file on disk are read by now.

    Raises:
        DataError: it cannot be opened; while reading: it is cut short or damaged.
        DeviceError: the package for its compression is not there.
    """
    make = _DECOMPRESSORS.get(path.suffix.lower())
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    with file:
        if make is None:
            yield io.BufferedReader(file, 1 << 20), file.tell
        else:
            raw = _Decompressed(path, file, make)
            yield io.BufferedReader(raw, 1 << 20), raw.taken


class _Decompressed(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, file: io.RawIOBase | io.FileIO, make: Callable[[], Any]) -> None:
        self._path, self._file, self._make = path, file, make
        self._decompressor: Any = None
        self._left = b""  # of the file: read, but behind the end of a stream
        self._out = memoryview(b"")
        self._taken = 0

    def taken(self) -> int:
        """Bytes of the file that are read."""
        return self._taken

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            block = self._left or self._file.read(_BLOCK) or b""
            if not self._left:
                self._taken += len(block)
            self._left = b""
            if not block:
                if self._decompressor is not None:
                    raise DataError(
                        f"{self._path} is cut short: at byte {self._taken}, its end, the compressed data are not over. "
                        "Copy or fetch it again."
                    )
                return 0
            self._out = memoryview(self._decompress(block))
        taken = self._out[: len(buffer)]
        buffer[: len(taken)] = taken
        self._out = self._out[len(taken) :]
        return len(taken)

    def _decompress(self, block: bytes) -> bytes:
        if self._decompressor is None:
            block = block.lstrip(b"\0")  # some programs fill the space behind a stream with zeros
            if not block:
                return b""
            self._decompressor = self._make()
        try:
            out = self._decompressor.decompress(block)
        except DeviceError:
            raise
        except Exception as error:  # each library raises its own
            raise DataError(
                f"{self._path} is damaged, or is no {self._path.suffix} file: it cannot be decompressed near byte "
                f"{self._taken - len(block)} ({error}). Copy or fetch it again."
            ) from None
        if self._decompressor.eof:
            self._left, self._decompressor = self._decompressor.unused_data, None
        return out

"""A stream of token ids over any number of shards, of which nothing is held but where each shard starts.

Windows are read from the files, not from a memory map: pages of a map count as the process' memory, and a run that
draws windows from all over a large corpus ends up holding all of it (nanoGPT maps the file anew for every batch to be
rid of them, which costs four times as much as reading; `benchmarks/reading.py` has the figures).
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from bonsaigpt.errors import DataError

__all__ = ["ArrayShard", "FileShard", "Files", "ImaginaryShard", "Shard", "TokenStream"]

_OPEN_FILES = 128
"""Files that a stream keeps open, the last used ones: systems allow a process 256 or 1024."""
_PIECE = 2**20
"""Tokens that ``pieces`` reads at once."""


class Shard(Protocol):
    """Some consecutive ids of a stream."""

    @property
    def tokens(self) -> int:
        """How many."""
        ...

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill ``out``, of the stream's dtype, with the ids from ``first`` on; there are as many."""
        ...


@dataclass(frozen=True)
class ArrayShard:
    """Ids in memory."""

    array: np.ndarray
    name: str = "tokens in memory"

    @property
    def tokens(self) -> int:
        return len(self.array)

    def read(self, first: int, out: np.ndarray) -> None:
        out[:] = self.array[first : first + len(out)]


@dataclass(frozen=True)
class ImaginaryShard:
    """Ids that nobody has written: a function of their positions, (n,) int64 to (n,) ids. For tests at any size."""

    tokens: int
    function: Callable[[np.ndarray], np.ndarray]
    name: str = "imaginary tokens"

    def read(self, first: int, out: np.ndarray) -> None:
        out[:] = self.function(np.arange(first, first + len(out)))


class FileShard:
    """Ids in a file of nothing else; files are opened when they are first read, and the streams share ``files``."""

    def __init__(self, path: Path, tokens: int, files: Files | None = None) -> None:
        self.path, self.tokens = path, tokens
        self.files = files or Files()

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self, first: int, out: np.ndarray) -> None:
        offset = first * out.itemsize
        if self.files.read(self.path, offset, out.data.cast("B")) != out.nbytes:
            raise DataError(
                f"{self.path} ends at byte {self.path.stat().st_size}, but has to hold {self.tokens} tokens "
                f"({self.tokens * out.itemsize} bytes): it was cut short. Delete its folder to prepare it anew"
            )


class Files:
    """Open files, the least recently used of which is closed when there are too many."""

    def __init__(self, most: int = _OPEN_FILES) -> None:
        self.most = most
        self._open: OrderedDict[Path, FileIO] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def read(self, path: Path, offset: int, out: memoryview) -> int:
        """Fill ``out`` from a byte of the file on; the number of bytes that there were."""
        with self._lock:
            file = self._open.pop(path, None)
            if file is None:
                try:
                    file = FileIO(path)
                except OSError as error:
                    raise DataError(f"{path} cannot be read: {error.strerror}. Was its folder deleted?") from None
                while len(self._open) >= self.most:
                    self._open.popitem(last=False)[1].close()
            self._open[path] = file
            try:
                if hasattr(os, "preadv"):  # not on Windows; it leaves the place alone, so forked processes may share it
                    return os.preadv(file.fileno(), [out], offset)
                file.seek(offset)
                return file.readinto(out) or 0
            except OSError as error:
                raise DataError(f"{path} cannot be read at byte {offset}: {error.strerror}. Check the disk.") from None


def _close(files: OrderedDict[Path, FileIO]) -> None:
    for file in files.values():
        file.close()


class TokenStream:
    """The ids of all shards, one after the other. Starts are int64: 10^12 tokens are as good as a thousand.

    Args:
        limit: size of the vocabulary; an id that is read and is not below it is an error.
    """

    def __init__(self, shards: Sequence[Shard], dtype: DTypeLike, *, limit: int | None = None) -> None:
        self.shards = tuple(shards)
        self.dtype = np.dtype(dtype)
        self.limit = limit
        self.edges = [0, *accumulate(shard.tokens for shard in shards)]
        """Where each shard starts, and the number of all tokens."""

    @classmethod
    def of(cls, array: np.ndarray) -> TokenStream:
        """A stream over ids in memory."""
        return cls([ArrayShard(array)], array.dtype)

    def __len__(self) -> int:
        return self.edges[-1]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """``length`` ids from each start on, (n, length) int64; windows may cross from shard to shard.

        Raises:
            DataError: a shard cannot be read, is shorter than it was, or holds an id outside the vocabulary.
        """
        out = np.empty((len(starts), length), dtype=self.dtype)
        for row, start in zip(out, starts.tolist(), strict=True):
            self._fill(row, start)
        if self.limit is not None and out.size and out.max() >= self.limit:
            row, column = np.unravel_index(int(out.argmax()), out.shape)
            self._refuse(int(starts[row]) + int(column), int(out[row, column]))
        return out.astype(np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from ``start`` to before ``stop``, (n,) of the stream's dtype; a stop past the end means the end."""
        out = np.empty(max(0, min(stop, len(self)) - start), dtype=self.dtype)
        self._fill(out, start)
        return out

    def pieces(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """All ids from ``start`` on in pieces of bounded size, each with its place."""
        for first in range(start, len(self), _PIECE):
            yield first, self.read(first, first + _PIECE)

    def _fill(self, out: np.ndarray, start: int) -> None:
        number = bisect_right(self.edges, start) - 1
        while len(out):
            shard, inside = self.shards[number], start - self.edges[number]
            here = min(len(out), shard.tokens - inside)
            if here:
                shard.read(inside, out[:here])
            out, start, number = out[here:], start + here, number + 1

    def _refuse(self, place: int, token: int) -> None:
        number = bisect_right(self.edges, place) - 1
        inside = place - self.edges[number]
        raise DataError(
            f"{self.shards[number].name} holds the id {token} at token {inside} (byte {inside * self.dtype.itemsize}), "
            f"but its tokenizer has only {self.limit} tokens: they do not belong together, or the file was changed. "
            "Delete the corpus to prepare it anew"
        )

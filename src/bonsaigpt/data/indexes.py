"""Indexes: numbers that follow from a corpus, are made on first use, and kept so that they are made once.

An index is a file of little-endian uint64 with the SHA-256 of its corpus, its name and these numbers behind them. It is
read through when it is opened, so one that was changed, cut short or left behind by another corpus is made anew. It
lies beside the shards; where nothing can be written there, in the folder of corpora; and where nothing can be written
at all, it is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bonsaigpt.data.shards import Corpus
from bonsaigpt.data.stream import FileShard, TokenStream
from bonsaigpt.errors import DataError, OutputError
from bonsaigpt.files import file_aside, writing
from bonsaigpt.progress import Say, silent

__all__ = ["INDEX", "Indexes"]

INDEX = np.dtype("<u8")
"""Numbers of an index on the disk."""
_SUFFIX = ".index"
_DIGEST = hashlib.sha256().digest_size
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Indexes:
    """The indexes of one corpus. Without homes they are kept in memory."""

    homes: tuple[Path, ...] = ()
    """Folders, the best one first."""
    key: str = ""
    """The corpus' fingerprint: its index fits no other."""
    say: Say = silent

    @classmethod
    def of(cls, corpus: Corpus, corpora: Path, say: Say = silent) -> Indexes:
        """Those of a corpus, which need not lie in the folder of ``corpora``."""
        key = corpus.fingerprint
        return cls((corpus.folder, corpora / ".indexes" / key[:16]), key, say)

    def open(self, name: str, numbers: Callable[[], Iterator[np.ndarray]]) -> TokenStream:
        """A stream of uint64: the index of this name, from its file or else from ``numbers``, in pieces.

        Raises:
            DataError: a file that is there cannot be read.
        """
        files = [home / f"{name}{_SUFFIX}" for home in self.homes]
        for file in files:
            if file.is_file() and self._is_whole(file):
                return _stream(file)
        for file in files:
            try:
                self._write(file, numbers())
                return _stream(file)
            except OutputError:
                continue
        if files:
            self.say(f"{files[0].name} is kept in memory: neither {' nor '.join(map(str, self.homes))} can be written")
        return TokenStream.of(np.concatenate(list(numbers())))

    def damaged(self) -> list[Path]:
        """Files that are there, and not what was written."""
        found = (file for home in self.homes for file in sorted(home.glob(f"*{_SUFFIX}")))
        return [file for file in found if not self._is_whole(file)]

    def _write(self, file: Path, numbers: Iterator[np.ndarray]) -> None:
        digest = self._digest(file)
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        with file_aside(file) as aside, aside.open("wb") as out:
            for part in numbers:
                data = np.ascontiguousarray(part, dtype=INDEX).data
                digest.update(data)
                out.write(data)
            out.write(digest.digest())

    def _is_whole(self, file: Path) -> bool:
        digest, left = self._digest(file), file.stat().st_size - _DIGEST
        if left < INDEX.itemsize or left % INDEX.itemsize:
            return False
        try:
            with file.open("rb") as source:
                while left > 0 and (block := source.read(min(_BLOCK, left))):
                    digest.update(block)
                    left -= len(block)
                return source.read() == digest.digest()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}. Check the disk, or delete it.") from None

    def _digest(self, file: Path) -> hashlib._Hash:
        return hashlib.sha256(f"{self.key} {file.name}\n".encode())


def _stream(file: Path) -> TokenStream:
    return TokenStream([FileShard(file, (file.stat().st_size - _DIGEST) // INDEX.itemsize)], INDEX)

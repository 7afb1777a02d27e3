"""Writing a corpus: ids are cut into shards of equal length as they come, and can go on after a kill at any moment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bonsaigpt.config import SHARD_TOKENS
from bonsaigpt.data.shards import Corpus, Counts, ShardInfo, open_corpus
from bonsaigpt.data.tokenizers import Tokenizer, smallest_dtype
from bonsaigpt.files import folder_aside, replace_folder, sync, write_text, writing

__all__ = ["CorpusWriter", "ShardWriter"]

_BLOCK = 4 << 20


class ShardWriter:
    """The shards of one split: ``SPLIT-000000.bin``, ... in a folder, all but the last equally long."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split = folder, split
        self._dtype, self._shard_tokens = dtype, shard_tokens
        self._closed: list[ShardInfo] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._tokens = 0

    def append(self, ids: np.ndarray) -> None:
        """Write (n,) ids after those before."""
        data = np.ascontiguousarray(ids, dtype=self._dtype)
        while len(data):
            now = data[: self._shard_tokens - self._tokens]
            with writing(self._path):
                if self._file is None:
                    self._file = self._path.open("wb")
                self._file.write(now.data)
            self._digest.update(now.data)
            self._tokens += len(now)
            if self._tokens == self._shard_tokens:
                self._close()
            data = data[len(now) :]

    def finish(self) -> list[ShardInfo]:
        """Close the last shard; all of them."""
        if self._tokens:
            self._close()
        return self._closed

    def commit(self) -> dict[str, Any]:
        """Wait until everything is on the disk; what ``restore`` needs to come back to here."""
        if self._file is not None:
            with writing(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
        closed = [[shard.tokens, shard.sha256] for shard in self._closed]
        return {"shards": closed, "tokens": self._tokens, "sha256": self._digest.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Come back to a ``commit`` of an earlier process: what it wrote later is cut off.

        Raises:
            ValueError: less is there than was committed, or something else.
        """
        self._closed = []
        for tokens, sha256 in state["shards"]:
            if self._path.stat().st_size != tokens * self._dtype.itemsize:
                raise ValueError(f"{self._path} has another size than its journal says")
            self._closed.append(ShardInfo(self._path.name, self._split, tokens, sha256))
        later = [p for p in self._folder.glob(f"{self._split}-*.bin") if p.name > self._path.name]
        self._tokens = state["tokens"]
        with writing(self._path):
            for path in [*later, *([] if self._tokens else [self._path])]:
                path.unlink(missing_ok=True)
        if not self._tokens:
            return
        size = self._tokens * self._dtype.itemsize
        if self._path.stat().st_size < size:
            raise ValueError(f"{self._path} is shorter than its journal says")
        with writing(self._path):
            self._file = self._path.open("r+b")
            self._file.truncate(size)
            while block := self._file.read(_BLOCK):
                self._digest.update(block)
        if self._digest.hexdigest() != state["sha256"]:
            raise ValueError(f"{self._path} was changed since its journal was written")

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk what is buffered cannot be written, as was said already
                self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._split}-{len(self._closed):06d}.bin"

    def _close(self) -> None:
        self.commit()
        self.abandon()
        self._closed.append(ShardInfo(self._path.name, self._split, self._tokens, self._digest.hexdigest()))
        self._digest, self._tokens = hashlib.sha256(), 0


class CorpusWriter:
    """Writes what is made in a moment, such as a toy, aside, and moves it into place when it is complete; a crash
    leaves nothing behind."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dtype = smallest_dtype(tokenizer.vocab_size)
        self._shards: list[ShardInfo] = []

    def __enter__(self) -> CorpusWriter:
        with ExitStack() as stack:
            self._aside = stack.enter_context(folder_aside(self.folder))
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._cleanup.__exit__(*exception)

    def write(self, split: str, pieces: Iterable[np.ndarray]) -> None:
        """Write one split's ids, piece by piece."""
        shards = ShardWriter(self._aside, split, self.dtype)
        try:
            for piece in pieces:
                shards.append(piece)
            self._shards += shards.finish()
        finally:
            shards.abandon()

    def finish(
        self,
        *,
        source: str,
        identity: str,
        split: str,
        documents: int,
        counts: dict[str, Counts] | None = None,
        notes: dict[str, float | int | str],
    ) -> Corpus:
        """Write the description and move the folder into place."""
        corpus = Corpus(
            folder=self.folder,
            source=source,
            identity=identity,
            split=split,
            documents=documents,
            counts=counts or {},
            dtype=self.dtype.name,
            shards=tuple(self._shards),
            notes=notes,
            tokenizer=self.tokenizer,
        )
        write_text(self._aside / "tokenizer.json", self.tokenizer.to_json())
        write_text(self._aside / "corpus.json", corpus.description())
        sync(self._aside)
        with writing(self._aside):
            if self.folder.exists():  # another process made the same corpus meanwhile
                return open_corpus(self.folder)
            replace_folder(self._aside, self.folder)
        return corpus

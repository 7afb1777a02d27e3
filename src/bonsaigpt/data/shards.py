"""Token ids on disk: raw arrays beside a ``corpus.json`` that says what they are, with their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.data.stream import Files, FileShard, TokenStream
from bonsaigpt.data.tokenizers import Tokenizer, from_json, smallest_dtype
from bonsaigpt.errors import CheckpointError, DataError
from bonsaigpt.files import folder_aside, replace_folder, writing

__all__ = ["Corpus", "CorpusWriter", "ShardInfo", "open_corpus"]

FORMAT = 1


@dataclass(frozen=True)
class ShardInfo:
    """One file of token ids."""

    file: str
    split: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """Tokens on disk, and where they came from."""

    folder: Path
    source: str
    text_sha256: str
    """Of the documents' text, in order; of the token ids where there is no text."""
    split: str
    """How the validation split was chosen, in words."""
    documents: int
    dtype: str
    shards: tuple[ShardInfo, ...]
    notes: dict[str, float | int | str]
    """What only this source has to say, e.g. the known loss floor of a toy."""
    tokenizer: Tokenizer

    def stream(self, split: str) -> TokenStream:
        """The ids of a split, to be read from its shards window by window."""
        files = Files()
        shards = [FileShard(self.folder / s.file, s.tokens, files) for s in self.shards if s.split == split]
        return TokenStream(shards, self.dtype, limit=self.tokenizer.vocab_size)

    def tokens(self, split: str) -> np.ndarray:
        """The ids of a split, all of them in memory; (N,) of the corpus' dtype."""
        return self.stream(split).read(0, self.count(split))

    def count(self, split: str) -> int:
        """Number of tokens of a split."""
        return sum(s.tokens for s in self.shards if s.split == split)

    @property
    def fingerprint(self) -> str:
        """Hash over the hashes of all shards: the same tokens, the same fingerprint."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()


class CorpusWriter:
    """Writes a corpus aside and moves it into place when it is complete; a crash leaves nothing behind."""

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
        """Write one split's ids, piece by piece, as one shard."""
        file = f"{split}-000.bin"
        digest, tokens = hashlib.sha256(), 0
        with writing(self._aside / file), (self._aside / file).open("wb") as out:
            for piece in pieces:
                data = np.ascontiguousarray(piece, dtype=self.dtype).data
                out.write(data)
                digest.update(data)
                tokens += len(piece)
        self._shards.append(ShardInfo(file, split, tokens, digest.hexdigest()))

    def finish(
        self,
        *,
        source: str,
        text_sha256: str,
        split: str,
        documents: int,
        notes: dict[str, float | int | str],
    ) -> Corpus:
        """Write the description and move the folder into place."""
        corpus = Corpus(
            folder=self.folder,
            source=source,
            text_sha256=text_sha256,
            split=split,
            documents=documents,
            dtype=self.dtype.name,
            shards=tuple(self._shards),
            notes=notes,
            tokenizer=self.tokenizer,
        )
        described = {
            "format": FORMAT,
            "source": source,
            "documents": documents,
            "text_sha256": text_sha256,
            "split": split,
            "tokenizer": {"kind": self.tokenizer.kind, "vocab_size": self.tokenizer.vocab_size},
            "dtype": corpus.dtype,
            "shards": [asdict(s) for s in self._shards],
            "notes": notes,
        }
        with writing(self._aside):
            (self._aside / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
            (self._aside / "corpus.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
            if self.folder.exists():  # another process made the same corpus meanwhile
                return open_corpus(self.folder)
            replace_folder(self._aside, self.folder)
        return corpus


def open_corpus(folder: Path, *, verify: bool = False) -> Corpus:
    """Open a corpus; sizes are always checked, hashes with ``verify``.

    Raises:
        DataError: not a corpus, or a shard is missing, truncated or changed.
    """
    try:
        described = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        tokenizer = from_json(
            (folder / "tokenizer.json").read_text(encoding="utf-8"), origin=f"{folder}/tokenizer.json"
        )
        corpus = Corpus(
            folder=folder,
            source=described["source"],
            text_sha256=described["text_sha256"],
            split=described["split"],
            documents=described["documents"],
            dtype=described["dtype"],
            shards=tuple(ShardInfo(**s) for s in described["shards"]),
            notes=described["notes"],
            tokenizer=tokenizer,
        )
        for shard in corpus.shards:
            path = folder / shard.file
            size = path.stat().st_size
            if size != shard.tokens * np.dtype(corpus.dtype).itemsize:
                raise DataError(f"{path} has {size} bytes, corpus.json says {shard.tokens} tokens: delete {folder}")
            if verify and hashlib.sha256(path.read_bytes()).hexdigest() != shard.sha256:
                raise DataError(f"{path} was changed since it was written: delete {folder} to prepare it anew")
    except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
        raise DataError(f"{folder} is not a whole corpus ({error}): delete it to prepare it anew") from None
    return corpus

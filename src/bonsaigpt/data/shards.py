"""Token ids on disk: raw arrays beside a ``corpus.json`` that says what they are, with their hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.stream import Files, FileShard, TokenStream
from bonsaigpt.data.tokenizers import Tokenizer, from_json
from bonsaigpt.errors import CheckpointError, DataError
from bonsaigpt.progress import Advance, silent

__all__ = ["Corpus", "Counts", "ShardInfo", "find_corpora", "open_corpus", "verify_shards"]

FORMAT = 2
"""1 had one shard for each split, and counted neither characters nor bytes nor duplicates."""


@dataclass(frozen=True)
class ShardInfo:
    """One file of token ids."""

    file: str
    split: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """What a split is made of."""

    documents: int
    """Whose text is in it, wholly or in part."""
    characters: int
    bytes: int
    """Of text, as UTF-8."""
    tokens: int
    """With those that separate documents."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Tokens on disk, and where they came from."""

    folder: Path
    source: str
    identity: str
    """Of the source: changes whenever its documents do."""
    split: str
    """How the validation split was chosen, in words."""
    documents: int
    """All that were kept."""
    duplicates: int = 0
    """Documents left out because an equal one came before."""
    dropped: int = 0
    """Documents left out because nothing of them was text."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """By split; empty in corpora of format 1."""
    dtype: str
    shards: tuple[ShardInfo, ...]
    """The training ones first, in order."""
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
        """Hash over the hashes of all shards: the same tokens in the same files, the same fingerprint."""
        return _fingerprint(s.sha256 for s in self.shards)

    def description(self) -> str:
        """``corpus.json``."""
        described = {
            "format": FORMAT,
            "source": self.source,
            "identity": self.identity,
            "documents": self.documents,
            "duplicates": self.duplicates,
            "dropped": self.dropped,
            "split": self.split,
            "counts": {split: asdict(counts) for split, counts in self.counts.items()},
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "vocab_size": self.tokenizer.vocab_size,
                "sha256": hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest(),
            },
            "dtype": self.dtype,
            "shards": [asdict(s) for s in self.shards],
            "notes": self.notes,
        }
        return json.dumps(described, indent=2)


def _fingerprint(hashes: Any) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus; the sizes of its shards are checked, and the hash of its tokenizer. ``verify_shards`` reads them.

    Raises:
        DataError: not a corpus, its tokenizer was changed, or a shard is missing or truncated.
    """
    try:
        told = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if told["format"] > FORMAT:
            raise DataError(f"{folder} was written by a newer version of this program: update, or delete it")
        tokenizer = (folder / "tokenizer.json").read_bytes()
        stated = told["tokenizer"].get("sha256")  # none in corpora of earlier versions
        if stated is not None and hashlib.sha256(tokenizer).hexdigest() != stated:
            raise DataError(
                f"{folder}/tokenizer.json was changed since it was written (its SHA-256 is not that of corpus.json): "
                f"copy it from a backup, or delete {folder} to prepare it anew"
            )
        corpus = Corpus(
            folder=folder,
            source=told["source"],
            identity=told["text_sha256"] if told["format"] == 1 else told["identity"],
            split=told["split"],
            documents=told["documents"],
            duplicates=told.get("duplicates", 0),
            dropped=told.get("dropped", 0),
            counts={split: Counts(**counts) for split, counts in told.get("counts", {}).items()},
            dtype=told["dtype"],
            shards=tuple(ShardInfo(**s) for s in told["shards"]),
            notes=told["notes"],
            tokenizer=from_json(tokenizer.decode("utf-8"), origin=f"{folder}/tokenizer.json"),
        )
        for shard in corpus.shards:
            path = folder / shard.file
            size, stated = path.stat().st_size, shard.tokens * np.dtype(corpus.dtype).itemsize
            if size != stated:
                raise DataError(
                    f"{path} has {size} bytes where corpus.json says {stated}: delete {folder} to prepare it anew"
                )
    except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
        raise DataError(f"{folder} is not a whole corpus ({error}): delete it to prepare it anew") from None
    return corpus


def verify_shards(corpus: Corpus, hashes: FileHashes, *, anew: bool = False, advance: Advance = silent) -> None:
    """Compare the hash of every shard with what was written; those that ``hashes`` remembers are not read, unless
    ``anew``. ``advance`` follows the bytes that are.

    Raises:
        DataError: a shard was changed; the message names all that were.
    """
    paths = [corpus.folder / shard.file for shard in corpus.shards]
    for path in paths if anew else ():
        hashes.forget(path)
    total = sum(path.stat().st_size for path in paths if not hashes.known(path))
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        advance("verifying shards", done, total)

    try:
        changed = [p for p, s in zip(paths, corpus.shards, strict=True) if hashes.sha256(p, step) != s.sha256]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Check the disk.") from None
    for path in changed:  # it may be mended by a copy that looks the same
        hashes.forget(path)
    hashes.save()
    if changed:
        names = ", ".join(map(str, changed))
        was = "was" if len(changed) == 1 else "were"
        raise DataError(
            f"{names} {was} changed since it was written (its SHA-256 is not that of corpus.json): "
            f"copy it from a backup, or delete {corpus.folder} to prepare it anew"
        )


def find_corpora(parent: Path, fingerprint: str) -> list[Path]:
    """Folders below ``parent`` of corpora that a run with this fingerprint of data reads."""
    found: list[Path] = []
    for file in sorted(parent.glob("*/corpus.json")):
        try:
            shards = json.loads(file.read_text(encoding="utf-8"))["shards"]
            if _fingerprint(shard["sha256"] for shard in shards) in fingerprint:
                found.append(file.parent)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found

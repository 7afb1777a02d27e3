"""A corpus while it grows: the folder ``.NAME.work`` beside its future place, which survives a kill at any moment.

  train-000000.bin ...   shards; the last one of each split is open
  seen.bin               hashes of the documents so far, where duplicates are dropped
  tokenizer.json         as soon as there is one
  progress.json          how far everything above is known to be on the disk, and the place in the source

``progress.json`` is replaced in one step after all that it speaks of was forced to the disk. Whoever comes back cuts
the files to the lengths it names and goes on from its place in the source, so the finished files are the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.data.corpora.source import Cursor
from bonsaigpt.data.pieces import SPLITS, Encoded, Stretch
from bonsaigpt.data.seen import Seen
from bonsaigpt.data.shards import Corpus, Counts, ShardInfo, open_corpus
from bonsaigpt.data.tokenizers import Tokenizer, smallest_dtype
from bonsaigpt.data.writing import ShardWriter
from bonsaigpt.errors import OutputError
from bonsaigpt.files import lock, replace_folder, sync, write_text, writing

__all__ = ["Growing", "Work", "claim"]

_COMMIT_SECONDS = 3.0
"""Work that a kill may cost. Each commit waits for the disk."""


class Work:
    """The folder, held by this process alone."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder, self.target = folder, target

    @property
    def is_complete(self) -> bool:
        """Whether all was written, and only the move into place is left."""
        return (self.folder / "corpus.json").exists()

    @property
    def has_progress(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / "progress.json").exists()

    def tokenizer_json(self) -> str | None:
        """Of the tokenizer that was made already."""
        path = self.folder / "tokenizer.json"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def keep_tokenizer(self, tokenizer_json: str) -> None:
        """Write it down: it is not made twice."""
        write_text(self.folder / "tokenizer.json", tokenizer_json)

    def complete(self, description: str) -> Corpus:
        """All is written: say what it is, and move it into place."""
        write_text(self.folder / "corpus.json", description)
        return self.move()

    def move(self) -> Corpus:
        """Move the complete corpus into place; whoever finds this half done does it again."""
        with writing(self.target):
            for name in ("progress.json", "seen.bin"):
                (self.folder / name).unlink(missing_ok=True)
            replace_folder(self.folder, self.target)
        return open_corpus(self.target)

    def clear(self) -> None:
        """Begin anew."""
        with writing(self.folder):
            for path in self.folder.iterdir():
                path.unlink()


@contextmanager
def claim(target: Path, say: Callable[[str], None]) -> Iterator[Work | None]:
    """The work folder of a corpus; None if the corpus is there. Two processes take turns: the second waits, and then
    finds the corpus. If what is done inside fails before there is progress, nothing stays behind.

    Raises:
        OutputError: the folder cannot be made.
    """
    folder = target.with_name(f".{target.name}.work")
    made = [parent for parent in folder.parents if not parent.exists()]
    while True:
        if target.exists():
            yield None
            return
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
        before = _inode(folder)
        with _held(folder, say):
            if before is None or _inode(folder) != before:  # whoever held it has moved it into place, or given up
                continue
            work = Work(folder, target)
            try:
                yield work
            finally:
                if folder.exists() and not (work.has_progress or work.is_complete):
                    shutil.rmtree(folder, ignore_errors=True)
                    for parent in made:
                        with suppress(OSError):  # somebody else uses it
                            parent.rmdir()
            return


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


@contextmanager
def _held(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    try:
        held = lock(folder, wait=False)
        held.__enter__()
    except FileNotFoundError:  # moved away this very moment
        yield
        return
    except OutputError:
        say(f"another process prepares {folder.name[1:].removesuffix('.work')}: waiting for it")
        held = lock(folder, wait=True)
        held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)


class Growing:
    """Appends encoded pieces to the shards of both splits, in order."""

    def __init__(self, work: Work, tokenizer: Tokenizer, *, by: str, dedup: bool, shard_tokens: int) -> None:
        self._work, self._tokenizer, self._by = work, tokenizer, by
        self._dtype = smallest_dtype(tokenizer.vocab_size)
        self._writers = {split: ShardWriter(work.folder, split, self._dtype, shard_tokens) for split in SPLITS}
        self.counts = {split: Counts(0, 0, 0, 0) for split in SPLITS}
        self.documents = self.duplicates = self.dropped = 0
        self.cursor = Cursor()
        self._rest: str | None = None
        self._seen = Seen() if dedup else None
        self._fresh: list[np.ndarray] = []
        self._committed = time.monotonic()

    @property
    def tokens(self) -> int:
        """Of both splits so far."""
        return sum(counts.tokens for counts in self.counts.values())

    # ------------------------------------------------------------------ pieces

    def add(self, piece: Encoded) -> None:
        """Append a piece; commit now and then."""
        if piece.is_rest:
            keep = np.full(len(piece.stretches[0].tokens), self._rest is not None)
        else:
            keep = self._keep(piece)
        for split, stretch in zip(SPLITS, piece.stretches, strict=True):
            if piece.is_rest and self._by == "hash":
                split = self._rest or split
            self._append(split, stretch, keep)
        self.cursor = piece.cursor
        if time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self.commit()

    def _keep(self, piece: Encoded) -> np.ndarray:
        """Which documents are no duplicates; remembers what becomes of the rest of the last one."""
        hashes = piece.hashes
        if self._seen is None:
            keep = np.ones(len(hashes), dtype=bool)
        else:
            keep = self._seen.add(hashes)
            self._fresh.append(hashes[keep])
        self.documents += int(keep.sum())
        self.duplicates += int((~keep).sum())
        self.dropped += piece.dropped
        self._rest = None
        if len(keep) and keep[-1]:
            self._rest = SPLITS[int(piece.held_out[-1])]
        return keep

    def _append(self, split: str, stretch: Stretch, keep: np.ndarray) -> None:
        ids = stretch.ids if keep.all() else stretch.ids[np.repeat(keep, stretch.tokens)]
        before = self.counts[split]
        if not before.tokens and len(ids):  # nothing is before the first document
            ids = ids[1:]
        self._writers[split].append(ids)
        self.counts[split] = Counts(
            documents=before.documents + int(stretch.starts[keep].sum()),
            characters=before.characters + int(stretch.characters[keep].sum()),
            bytes=before.bytes + int(stretch.bytes[keep].sum()),
            tokens=before.tokens + len(ids),
        )

    # ------------------------------------------------------------------ the disk

    def commit(self) -> None:
        """Force everything to the disk, then say so in ``progress.json``."""
        state: dict[str, Any] = {
            "cursor": vars(self.cursor),
            "documents": self.documents,
            "duplicates": self.duplicates,
            "dropped": self.dropped,
            "rest": self._rest,
            "seen": self._commit_seen(),
            "counts": {split: vars(counts) for split, counts in self.counts.items()},
            "shards": {split: writer.commit() for split, writer in self._writers.items()},
        }
        with writing(self._work.folder):
            sync(self._work.folder)
        write_text(self._work.folder / "progress.json", json.dumps(state))
        self._committed = time.monotonic()

    def _commit_seen(self) -> int:
        if self._seen is None:
            return 0
        path = self._work.folder / "seen.bin"
        with writing(path), path.open("ab") as file:
            for hashes in self._fresh:
                file.write(hashes.data)
            file.flush()
            os.fsync(file.fileno())
        self._fresh = []
        return len(self._seen)

    def restore(self) -> bool:
        """Come back to the last commit of an earlier process; False if there is none that can be used."""
        path = self._work.folder / "progress.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            for split, writer in self._writers.items():
                writer.restore(state["shards"][split])
            self._restore_seen(state["seen"])
            self.counts = {split: Counts(**state["counts"][split]) for split in SPLITS}
            self.documents, self.duplicates, self.dropped = (state[n] for n in ("documents", "duplicates", "dropped"))
            self.cursor, self._rest = Cursor(**state["cursor"]), state["rest"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def _restore_seen(self, count: int) -> None:
        if self._seen is None:
            return
        path = self._work.folder / "seen.bin"
        with path.open("r+b") as file:
            file.truncate(8 * count)
        hashes = np.fromfile(path, dtype=np.uint64)
        if len(hashes) != count or not self._seen.add(hashes).all():
            raise ValueError(f"{path} is not what progress.json says")

    def finish(self, *, source: str, identity: str, split: str) -> Corpus:
        """Close the shards, describe the corpus, and move it into place."""
        shards: list[ShardInfo] = [shard for name in SPLITS for shard in self._writers[name].finish()]
        corpus = Corpus(
            folder=self._work.target,
            source=source,
            identity=identity,
            split=split,
            documents=self.documents,
            duplicates=self.duplicates,
            dropped=self.dropped,
            counts=self.counts,
            dtype=self._dtype.name,
            shards=tuple(shards),
            notes={},
            tokenizer=self._tokenizer,
        )
        return self._work.complete(corpus.description())

    def abandon(self) -> None:
        """Let go of the files."""
        for writer in self._writers.values():
            writer.abandon()

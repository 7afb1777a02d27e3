"""What is in a corpus: windows of it as text, how often each token occurs, how long documents are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bonsaigpt.data.shards import Corpus
from bonsaigpt.data.tokenizers import END_OF_TEXT
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance
from bonsaigpt.randomness import generator

__all__ = ["LONGEST", "SplitStats", "readable", "split_stats", "windows"]

_BLOCK = 1 << 22
LONGEST = 1 << 20
"""Tokens from which on lengths of documents are counted together."""


def windows(corpus: Corpus, split: str, *, count: int, length: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Places drawn at random, and the ids from there on; shorter only where the split is.

    Raises:
        DataError: the split has no tokens.
    """
    total = corpus.count(split)
    if total == 0:
        raise DataError(f"{corpus.folder} has no tokens in split '{split}': use another --split.")
    length = min(length, total)
    for start in generator(seed, "show", split).integers(0, total - length + 1, size=count).tolist():
        yield start, np.concatenate(list(_blocks(corpus, split, start, start + length)))


def readable(corpus: Corpus, ids: np.ndarray) -> str:
    """The text, with the end-of-text token spelled out."""
    end = corpus.tokenizer.end_of_text
    if end is None:
        return corpus.tokenizer.decode(ids)
    ends = np.flatnonzero(ids == end)
    parts = np.split(ids, ends)
    return corpus.tokenizer.decode(parts[0]) + "".join(END_OF_TEXT + corpus.tokenizer.decode(p[1:]) for p in parts[1:])


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """Counts over one split."""

    split: str
    frequency: np.ndarray
    """How often each id occurs, (V,) int64."""
    lengths: np.ndarray | None
    """Documents of each length in tokens, (LONGEST + 1,) int64, the last of that length or more; None where the
    tokenizer has no end-of-text token, so that nobody can tell where one ends."""

    @property
    def tokens(self) -> int:
        return int(self.frequency.sum())

    @property
    def used(self) -> int:
        """Ids that occur."""
        return int((self.frequency > 0).sum())

    @property
    def entropy(self) -> float:
        """Of the frequencies, in nats: the loss of a model that knows them and nothing else."""
        share = self.frequency[self.frequency > 0] / self.tokens
        return float(-(share * np.log(share)).sum())

    def length_quantile(self, share: float) -> int:
        """The length that ``share`` of the documents do not exceed."""
        assert self.lengths is not None
        below = np.cumsum(self.lengths)
        return int(np.searchsorted(below, share * below[-1]))


def split_stats(corpus: Corpus, split: str, advance: Advance) -> SplitStats:
    """Read a whole split. ``advance`` follows the tokens."""
    size, end, total = corpus.tokenizer.vocab_size, corpus.tokenizer.end_of_text, corpus.count(split)
    frequency = np.zeros(size, dtype=np.int64)
    lengths = np.zeros(LONGEST + 1, dtype=np.int64)
    done = last_end = 0
    for block in _blocks(corpus, split, 0, total):
        if int(block.max()) >= size:
            raise DataError(
                f"{corpus.folder} holds token {int(block.max())}, its tokenizer has {size} only: `bonsai data verify`"
            )
        frequency += np.bincount(block, minlength=size)
        if end is not None:
            ends = np.flatnonzero(block == end) + done
            if len(ends):
                ran = np.diff(ends, prepend=last_end - 1) - 1  # the end itself is no part of the document
                lengths += np.bincount(np.minimum(ran, LONGEST), minlength=LONGEST + 1)
                last_end = int(ends[-1]) + 1
        done += len(block)
        advance(f"counting {split}", done, total)
    lengths[min(done - last_end, LONGEST)] += 1
    return SplitStats(split=split, frequency=frequency, lengths=None if end is None else lengths)


def _blocks(corpus: Corpus, split: str, start: int, stop: int) -> Iterator[np.ndarray]:
    """The ids from ``start`` to ``stop``, a few MB at a time."""
    first = 0
    for shard in corpus.shards:
        if shard.split != split:
            continue
        low, high = max(start - first, 0), min(stop - first, shard.tokens)
        for at in range(low, high, _BLOCK):
            count = min(_BLOCK, high - at)
            item = np.dtype(corpus.dtype).itemsize
            yield np.fromfile(corpus.folder / shard.file, dtype=corpus.dtype, count=count, offset=at * item)
        first += shard.tokens

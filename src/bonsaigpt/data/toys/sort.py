"""Toy `sort` (Karpathy's minGPT): the model reads a list of digits and writes it in order.

For the list 2 0 1 a row is   inputs   2 0 1 0 1        (the list, then the answer but its last digit)
                              targets  . . 0 1 2        (the answer; dots do not count)

so the model is asked nothing until it has seen the whole list. A list belongs to the validation side if the hash of
its digits says so, whatever the seed: no list is ever both trained on and tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bonsaigpt.config import SortData
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.errors import ConfigError
from bonsaigpt.randomness import hash64, key

__all__ = ["SortBatches", "digits"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def digits(vocab: int) -> str:
    """The characters that stand for 0 .. vocab - 1, in code-point order as the tokenizer numbers them."""
    if vocab <= len(_DIGITS):
        return "".join(sorted(_DIGITS[:vocab]))
    if vocab > 20_000:
        raise ConfigError(f"data.vocab = {vocab} is more than the toy `sort` has symbols for: use at most 20000")
    return "".join(chr(0x4E00 + i) for i in range(vocab))  # a block of 20,992 letters


@dataclass(frozen=True)
class SortBatches:
    """Lists to sort: an endless stream to train on, and a fixed set that is never trained on."""

    config: SortData
    seed: int
    plan: BatchPlan
    stream: str = "train"
    """Names the endless stream that is trained on."""
    exact_match: bool = True

    @property
    def tokenizer(self) -> CharTokenizer:
        """Digits as characters."""
        return CharTokenizer(digits(self.config.vocab))

    @property
    def fingerprint(self) -> str:
        """Of everything that a batch depends on."""
        return f"sort-{self.config.vocab}-{self.config.length}-{self.seed}-{self.plan.batch_size}"

    def lists(self, name: str, numbers: np.ndarray, *, held_out: bool) -> np.ndarray:
        """(n, length) lists with these numbers; drawn again, number by number, until each is on its side."""
        length, vocab = self.config.length, self.config.vocab
        lists = np.zeros((len(numbers), length), dtype=np.int64)
        todo = np.arange(len(numbers))
        attempt = 0
        while todo.size:
            counters = numbers[todo, None] * length + np.arange(length)
            draws = hash64(key(self.seed, "sort", name, attempt), counters)
            lists[todo] = (draws % np.uint64(vocab)).astype(np.int64)
            todo = todo[is_held_out(lists[todo]) != held_out]
            attempt += 1
        return lists

    def batch_at(self, step: int) -> Batch:
        return self._batch(self.lists(self.stream, self.plan.samples(step), held_out=False))

    def reordered(self, attempt: int) -> SortBatches:
        return replace(self, stream=f"train-{attempt}")

    def validation(self) -> Iterator[Batch]:
        rows = max(1, 65536 // (2 * self.config.length))
        for first in range(0, self.config.val_examples, rows):
            numbers = np.arange(first, min(first + rows, self.config.val_examples))
            yield self._batch(self.lists("val", numbers, held_out=True))

    def validation_count(self) -> int:
        return self.config.val_examples * self.config.length

    def validation_bytes(self) -> int:
        return 0  # an answer to a task is no text to compress

    def _batch(self, lists: np.ndarray) -> Batch:
        length = self.config.length
        rows = np.concatenate([lists, np.sort(lists, axis=1)], axis=1)
        targets = rows[:, 1:].copy()
        targets[:, : length - 1] = IGNORE
        return Batch(tokens_BT=rows[:, :-1], targets_BT=targets, count=lists.size)


def is_held_out(lists: np.ndarray) -> np.ndarray:
    """Which lists are held out: a quarter, by a hash of the digits alone, (n,) bool."""
    hashed = np.zeros(len(lists), dtype=np.uint64)
    for column in lists.T:
        hashed = hash64(0x50F7, hashed ^ column.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return hashed % np.uint64(4) == 0

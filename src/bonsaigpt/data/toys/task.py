"""What the toys with an answer share: problems from (seed, step), some of them held out, and the share solved.

A row is a problem and its answer; the loss counts the answer alone. For the list 2 0 1 of the toy `sort`

    inputs   2 0 1 0 1        (the problem, then the answer but its last token)
    targets  . . 0 1 2        (the answer; dots do not count)

A problem belongs to the validation side if the hash of its tokens says so, whatever the seed: none is ever both trained
on and tested. The answer follows from the problem, so the best possible loss is 0, and a row counts as solved only if
every token of its answer is the model's first choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from bonsaigpt.config import TaskData
from bonsaigpt.data.batches import IGNORE, Batch, BatchSource
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.errors import ConfigError
from bonsaigpt.randomness import hash64, key

__all__ = ["Task", "TaskBatches", "is_held_out", "symbols"]

_SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Task(Protocol):
    """One toy: how its problems are drawn, and what their answers are."""

    @property
    def config(self) -> TaskData:
        """Its settings."""
        ...

    @property
    def name(self) -> str:
        """Its kind and whatever of its settings changes a row, for fingerprints and as part of the seed."""
        ...

    @property
    def alphabet(self) -> str:
        """The characters that stand for the ids, in code-point order, as the tokenizer numbers them."""
        ...

    def problems(self, key: int, numbers: np.ndarray) -> np.ndarray:
        """The problems with these numbers, (n, P) int64: row i is a function of ``key`` and ``numbers[i]`` alone."""
        ...

    def rows(self, problems: np.ndarray) -> np.ndarray:
        """Each problem with its answer as ids, (n, R) int64."""
        ...

    @property
    def asked(self) -> np.ndarray:
        """Which tokens of a row are answers, (R,) bool."""
        ...


@dataclass(frozen=True)
class TaskBatches:
    """Problems of one task: an endless stream to train on, and a fixed set that is never trained on."""

    task: Task
    seed: int
    plan: BatchPlan
    stream: str = "train"
    """Names the endless stream that is trained on."""
    exact_match: bool = True

    @property
    def tokenizer(self) -> CharTokenizer:
        """One character a symbol."""
        return CharTokenizer(self.task.alphabet)

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        return {}

    @property
    def fingerprint(self) -> str:
        """Of everything that a batch depends on."""
        return f"{self.task.name}-{self.seed}-{self.plan.batch_size}"

    def passes(self, positions: int) -> Mapping[str, float]:
        return {}  # every batch is made anew

    def problems(self, name: str, numbers: np.ndarray, *, held_out: bool) -> np.ndarray:
        """Those with these numbers in a named stream; drawn again, number by number, until each is on its side."""
        kind = self.task.name.partition("-")[0]
        found = np.empty((0, 0), dtype=np.int64)
        todo = np.arange(len(numbers))
        attempt = 0
        while todo.size:
            drawn = self.task.problems(key(self.seed, kind, name, attempt), numbers[todo])
            if attempt == 0:
                found = np.zeros((len(numbers), drawn.shape[1]), dtype=np.int64)
            found[todo] = drawn
            todo = todo[is_held_out(drawn) != held_out]
            attempt += 1
        return found

    def batch_at(self, step: int) -> Batch:
        return self.batch_of(self.problems(self.stream, self.plan.samples(step), held_out=False))

    def reordered(self, attempt: int) -> TaskBatches:
        return replace(self, stream=f"train-{attempt}")

    def validation(self) -> Iterator[Batch]:
        examples = self.task.config.val_examples
        rows = max(1, 65536 // self.task.config.row)
        for first in range(0, examples, rows):
            numbers = np.arange(first, min(first + rows, examples))
            yield self.batch_of(self.problems("val", numbers, held_out=True))

    def validation_count(self) -> int:
        return self.task.config.val_examples * int(self.task.asked.sum())

    def validation_bytes(self) -> int:
        return 0  # an answer to a task is no text to compress

    def batch_of(self, problems: np.ndarray) -> Batch:
        """A batch of these problems, (n, P), and their answers."""
        rows, asked = self.task.rows(problems), self.task.asked
        targets = np.where(asked[1:], rows[:, 1:], IGNORE)
        return Batch(tokens_BT=rows[:, :-1], targets_BT=targets, count=len(rows) * int(asked.sum()))


def is_held_out(problems: np.ndarray) -> np.ndarray:
    """Which problems, (n, P), are held out: a quarter, by a hash of their numbers alone, (n,) bool."""
    hashed = np.zeros(len(problems), dtype=np.uint64)
    for column in problems.T:
        hashed = hash64(0x50F7, hashed ^ column.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return hashed % np.uint64(4) == 0


def symbols(count: int, *, setting: str) -> str:
    """Characters for 0 .. count - 1, in code-point order as the tokenizer numbers them: digits first, then letters.

    Raises:
        ConfigError: more than there are; names the setting that asks for so many.
    """
    if count <= len(_SYMBOLS):
        return "".join(sorted(_SYMBOLS[:count]))
    if count > 20_000:
        raise ConfigError(f"{setting} asks for {count} symbols, more than a toy has: use at most 20000")
    return "".join(chr(0x4E00 + i) for i in range(count))  # a block of 20,992 letters

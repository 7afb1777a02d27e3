"""Toy `copy`: the model reads a string and a mark, and writes the string again.

With three symbols a row is   2 0 2 | 2 0 2   where the bar is the mark. To write a symbol the model has to look back
exactly ``length`` + 1 tokens, or find where what it has just written stood before (an induction head: Olsson et al.
2022). Where attention cannot reach that far, because of a window or of a cache that drops its middle, the loss is that
of guessing, ln(vocab) nats a symbol: so the toy shows what a cache forgets. The best loss is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import CopyData
from bonsaigpt.data.toys.task import symbols
from bonsaigpt.randomness import hash64

__all__ = ["Copy"]


@dataclass(frozen=True)
class Copy:
    """Strings to copy."""

    config: CopyData

    @property
    def name(self) -> str:
        return f"copy-{self.config.vocab}-{self.config.length}"

    @property
    def alphabet(self) -> str:
        return symbols(self.config.vocab + 1, setting="data.vocab")  # the last one is the mark

    def problems(self, key: int, numbers: np.ndarray) -> np.ndarray:
        counters = numbers[:, None] * self.config.length + np.arange(self.config.length)
        return (hash64(key, counters) % np.uint64(self.config.vocab)).astype(np.int64)

    def rows(self, problems: np.ndarray) -> np.ndarray:
        mark = np.full((len(problems), 1), self.config.vocab)
        return np.concatenate([problems, mark, problems], axis=1)

    @property
    def asked(self) -> np.ndarray:
        return np.arange(self.config.row) > self.config.length

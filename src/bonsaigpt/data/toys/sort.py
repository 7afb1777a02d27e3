"""Toy `sort` (Karpathy's minGPT): the model reads a list of digits and writes it in order.

For the list 2 0 1 a row is   2 0 1 | 0 1 2   (the bar is no token). Nothing is asked until the whole list was read.
One layer that counts equal digits would do; two or three learn it in a minute. The best loss is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import SortData
from bonsaigpt.data.toys.task import symbols
from bonsaigpt.randomness import hash64

__all__ = ["Sort"]


@dataclass(frozen=True)
class Sort:
    """Lists of digits."""

    config: SortData

    @property
    def name(self) -> str:
        return f"sort-{self.config.vocab}-{self.config.length}"

    @property
    def alphabet(self) -> str:
        return symbols(self.config.vocab, setting="data.vocab")

    def problems(self, key: int, numbers: np.ndarray) -> np.ndarray:
        counters = numbers[:, None] * self.config.length + np.arange(self.config.length)
        return (hash64(key, counters) % np.uint64(self.config.vocab)).astype(np.int64)

    def rows(self, problems: np.ndarray) -> np.ndarray:
        return np.concatenate([problems, np.sort(problems, axis=1)], axis=1)

    @property
    def asked(self) -> np.ndarray:
        return np.arange(self.config.row) >= self.config.length

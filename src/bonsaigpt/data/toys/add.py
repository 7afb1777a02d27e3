"""Toy `add`: the model reads two numbers of n digits and writes their sum.

With two digits a row is   1 7 + 0 9 = 6 2 0   for 17 + 09 = 026: the sum has n + 1 digits and is written from its last
digit on, as one adds by hand. So each digit needs one column and the carry of the column before, which has just been
written; from the first digit on (``reverse = false``) the first answer needs all carries at once, which small models
learn late or never (Lee et al. 2023, "Teaching arithmetic to small transformers", section 3). The best loss is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import AddData
from bonsaigpt.randomness import hash64

__all__ = ["Add"]

_ALPHABET = "+0123456789="
_PLUS, _ZERO, _EQUALS = 0, 1, 11


@dataclass(frozen=True)
class Add:
    """Sums of two numbers."""

    config: AddData

    @property
    def name(self) -> str:
        return f"add-{self.config.digits}-{'reversed' if self.config.reverse else 'plain'}"

    @property
    def alphabet(self) -> str:
        return _ALPHABET

    def problems(self, key: int, numbers: np.ndarray) -> np.ndarray:
        draws = hash64(key, numbers[:, None] * 2 + np.arange(2))
        return (draws % np.uint64(10**self.config.digits)).astype(np.int64)

    def rows(self, problems: np.ndarray) -> np.ndarray:
        digits = self.config.digits
        first, second = _digits(problems[:, 0], digits), _digits(problems[:, 1], digits)
        total = _digits(problems.sum(axis=1), digits + 1)
        if self.config.reverse:
            total = total[:, ::-1]
        plus, equals = (np.full((len(problems), 1), sign) for sign in (_PLUS, _EQUALS))
        return np.concatenate([first, plus, second, equals, total], axis=1)

    @property
    def asked(self) -> np.ndarray:
        return np.arange(self.config.row) >= 2 * self.config.digits + 2


def _digits(numbers: np.ndarray, count: int) -> np.ndarray:
    """Ids of the decimal digits, the first one first, (n, count)."""
    return numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10 + _ZERO

"""Which documents were there before, by 8 bytes of their hash: 8 bytes of memory for each, twice that for moments.

Of 10^8 different documents two share their 8 bytes with a probability of 10^16 / 2 / 2^64 = 0.03 %.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Seen"]


class Seen:
    """A set of 64-bit hashes, as a few sorted arrays, each at least twice as long as the next (a log-structured merge
    tree, O'Neil et al. 1996): adding is a merge now and then, asking is a binary search in each."""

    def __init__(self) -> None:
        self._levels: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add (n,) uint64; (n,) True where a hash was not there before, neither in the set nor further left."""
        values, first = np.unique(hashes, return_index=True)
        new = np.ones(len(values), dtype=bool)
        for level in self._levels:
            at = np.searchsorted(level, values)
            new &= level[np.minimum(at, len(level) - 1)] != values
        if new.any():
            self._levels.append(values[new])
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            last = self._levels.pop()
            merged = np.concatenate([self._levels.pop(), last])
            merged.sort()
            self._levels.append(merged)
        answer = np.zeros(len(hashes), dtype=bool)
        answer[first[new]] = True
        return answer

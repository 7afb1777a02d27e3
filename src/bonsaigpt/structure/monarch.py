"""Two block-diagonal matrices with a permutation between them: Monarch (Dao et al. 2022), and block tensor trains of
any rank (Qiu et al. 2024, equation 4).

With rows (i1, i2) and columns (j1, j2), W[(i1, i2), (j1, j2)] = sum over r of L[i2][i1, (j1, r)] R[j1][(i2, r), j2]:
each slice of W at fixed (i2, j1) is a matrix (m1, n2) of that rank of its own, where a Kronecker product would give all
slices the same columns. No parameter is used twice, so it takes as many multiply-adds as it stores values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bonsaigpt.structure.base import Factor, Product, Structure

__all__ = ["Monarch"]


@dataclass(frozen=True)
class Monarch(Structure):
    """``a_shape`` is (m1, n1); the rest of the sides is (m2, n2)."""

    a_shape: tuple[int, int]
    slice_rank: int

    @property
    def b_shape(self) -> tuple[int, int]:
        """(m2, n2)."""
        return self.out // self.a_shape[0], self.into // self.a_shape[1]

    @property
    def factors(self) -> tuple[Factor, ...]:
        (m1, n1), (m2, n2), r = self.a_shape, self.b_shape, self.slice_rank
        return Factor(name="L", shape=(m2, m1, n1 * r)), Factor(name="R", shape=(n1, m2 * r, n2))

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        (m1, n1), (m2, n2), r = self.a_shape, self.b_shape, self.slice_rank
        return {"R first": (Product(n1, m2 * r, n2), Product(m2, m1, n1 * r))}

    @property
    def expansion(self) -> int:
        return self.slice_rank * self.out * self.into

    @property
    def rank(self) -> int:
        return min(self.out, self.into, self.slice_rank * self.b_shape[0] * self.a_shape[1])

    @property
    def terms(self) -> int:
        return self.slice_rank

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        (m1, n1), (m2, n2), r = self.a_shape, self.b_shape, self.slice_rank
        L, R = values["L"].reshape(m2, m1, n1, r), values["R"].reshape(n1, m2, r, n2)
        return np.einsum("bajr,jbrk->abjk", L, R).reshape(self.out, self.into)

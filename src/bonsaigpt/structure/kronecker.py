"""A sum of Kronecker products: W = sum over r of s_r A_r (x) B_r.

With A_r of (m1, n1) and B_r of (m2, n2), W[(i1, i2), (j1, j2)] = sum s_r A_r[i1, j1] B_r[i2, j2]. For an input as a
table X of (n1, n2), row by row, the output is the table of (m1, m2) that sum s_r A_r X B_r^T gives: B first multiplies
each of the n1 rows, A first each of the n2 columns. What that costs, against the dense m n: R (1/m1 + 1/n2) with B
first, R (1/n1 + 1/m2) with A first (Tahaei et al. 2021, KroneckerBERT, equation 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bonsaigpt.structure.base import Factor, Product, Structure

__all__ = ["Kronecker", "rearrange", "restore"]


@dataclass(frozen=True)
class Kronecker(Structure):
    """``count`` products of A_r of ``a_shape`` with B_r of the rest."""

    a_shape: tuple[int, int]
    count: int
    scalers: bool

    @property
    def b_shape(self) -> tuple[int, int]:
        """(m2, n2)."""
        return self.out // self.a_shape[0], self.into // self.a_shape[1]

    @property
    def factors(self) -> tuple[Factor, ...]:
        pair = (
            Factor(name="A", shape=(self.count, *self.a_shape)),
            Factor(name="B", shape=(self.count, *self.b_shape)),
        )
        return (*pair, Factor(name="s", shape=(self.count,), init="ones")) if self.scalers else pair

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        (m1, n1), (m2, n2), R = self.a_shape, self.b_shape, self.count
        return {
            "A first": (Product(n2, R * m1, n1), Product(m1, m2, R * n2)),
            "B first": (Product(n1, R * m2, n2), Product(m2, m1, R * n1)),
        }

    @property
    def expansion(self) -> int:
        return self.count * self.out * self.into

    @property
    def rank(self) -> int:
        return min(self.out, self.into, self.count * min(self.a_shape) * min(self.b_shape))

    @property
    def terms(self) -> int:
        return self.count

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        A, B = values["A"], values["B"]
        if self.scalers:
            A = A * values["s"][:, None, None]
        return np.einsum("rij,rkl->ikjl", A, B).reshape(self.out, self.into)


def rearrange(W: np.ndarray, a_shape: tuple[int, int]) -> np.ndarray:
    """(m, n) to (m1 n1, m2 n2): each block of W becomes a row, so that a Kronecker product is a product of a column and
    a row (Van Loan and Pitsianis 1993)."""
    (m, n), (m1, n1) = W.shape, a_shape
    return W.reshape(m1, m // m1, n1, n // n1).transpose(0, 2, 1, 3).reshape(m1 * n1, -1)


def restore(R: np.ndarray, a_shape: tuple[int, int], out: int, into: int) -> np.ndarray:
    """The inverse of ``rearrange``."""
    m1, n1 = a_shape
    return R.reshape(m1, n1, out // m1, into // n1).transpose(0, 2, 1, 3).reshape(out, into)

"""A sum of Kronecker products plus a sparse matrix whose few columns are kept whole (after Thakker et al. 2020).

Inputs differ much in how often and how strongly they are active: the columns of the strongest are worth their price,
and what is left is easier for the products. Whole columns need one index each and are one dense product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bonsaigpt.structure.base import Factor, Product
from bonsaigpt.structure.kronecker import Kronecker

__all__ = ["KroneckerColumns"]


@dataclass(frozen=True)
class KroneckerColumns(Kronecker):
    """``Kronecker``, and ``C`` (out, columns) added to the given columns."""

    columns: tuple[int, ...]

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (*super().factors, Factor(name="C", shape=(self.out, len(self.columns)), init="zeros"))

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        columns = Product(1, self.out, len(self.columns))
        return {order: (*steps, columns) for order, steps in super().orders.items()}

    @property
    def rank(self) -> int:
        return min(self.out, self.into, super().rank + len(self.columns))

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        W = super().expand(values)
        W[:, list(self.columns)] += values["C"]
        return W

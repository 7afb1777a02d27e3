"""A product of two thin matrices: W = U V with U (out, rank) and V (rank, into)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bonsaigpt.structure.base import Factor, Product, Structure

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Structure):
    """The matrices of at most this rank."""

    inner: int

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (
            Factor(name="U", shape=(self.out, self.inner), matrix=True),
            Factor(name="V", shape=(self.inner, self.into), matrix=True),
        )

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        return {"V first": (Product(1, self.inner, self.into), Product(1, self.out, self.inner))}

    @property
    def expansion(self) -> int:
        return self.inner * self.out * self.into

    @property
    def rank(self) -> int:
        return self.inner

    @property
    def terms(self) -> int:
        return self.inner

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values["U"] @ values["V"]

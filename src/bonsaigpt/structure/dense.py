"""A matrix as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bonsaigpt.structure.base import Factor, Product, Structure

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Structure):
    """Stored and applied as one matrix."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (Factor(name="", shape=(self.out, self.into), matrix=True),)

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        return {"dense": (Product(1, self.out, self.into),)}

    @property
    def expansion(self) -> int:
        return 0

    @property
    def rank(self) -> int:
        return min(self.out, self.into)

    @property
    def factored(self) -> bool:
        return False

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values[""]

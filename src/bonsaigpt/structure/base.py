"""What every structure of a weight tells of itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["MATERIALISED", "Arrays", "Factor", "Product", "Structure"]

Arrays = dict[str, np.ndarray]

MATERIALISED = "materialised"
"""The order of application that makes the dense matrix first."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One array that a structured weight is stored as."""

    name: str
    """What follows the weight's name, e.g. ``A``; empty: the weight itself."""
    shape: tuple[int, ...]
    init: Literal["normal", "ones", "zeros"] = "normal"
    """Fresh values. Normal ones are scaled so that the product of all has the variance of a dense matrix."""
    std: float | None = None
    """Standard deviation of fresh normal values, where it does not follow from that of the product."""
    matrix: bool = False
    """Whether it is a map between activations by itself, which Muon may orthogonalise."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def key(self, weight: str) -> str:
        """The name of the parameter: ``transformer.h.0.mlp.c_fc.weight.A``."""
        return f"{weight}.{self.name}" if self.name else weight


@dataclass(frozen=True)
class Product:
    """A product with a matrix, as one of the steps in which a structure is applied."""

    rows: int
    """Vectors that are multiplied for each token."""
    out: int
    into: int

    @property
    def macs(self) -> int:
        """Multiply-adds for each token, in the forward pass; each is two operations, and the backward pass doubles."""
        return self.rows * self.out * self.into


@dataclass(frozen=True)
class Structure(ABC):
    """A way to store and to apply a matrix of ``out`` rows and ``into`` columns, y = W x."""

    out: int
    into: int

    @property
    @abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """The arrays that are stored, in order."""

    @property
    @abstractmethod
    def orders(self) -> dict[str, tuple[Product, ...]]:
        """The orders in which the factors can be multiplied with activations, without ever making the matrix."""

    @property
    @abstractmethod
    def expansion(self) -> int:
        """Multiply-adds to make the matrix from the factors, once for a batch."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The highest rank that the matrix can have."""

    @abstractmethod
    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The matrix (out, into) that factors stand for; by definition, in their own number format."""

    @property
    def terms(self) -> int:
        """Products of factors that each element of the matrix is the sum of."""
        return 1

    @property
    def factored(self) -> bool:
        """Whether the matrix is stored as anything but itself."""
        return True

    @property
    def parameters(self) -> int:
        """Stored values."""
        return sum(factor.size for factor in self.factors)

    def macs(self, order: str) -> int:
        """Multiply-adds for each token, in the forward pass; for the materialised order without the expansion."""
        if order == MATERIALISED:
            return self.out * self.into
        return sum(product.macs for product in self.orders[order])

    @property
    def cheapest(self) -> str:
        """The order of factors that takes the fewest operations."""
        return min(self.orders, key=self.macs)

    @property
    def materialise_from(self) -> float:
        """Tokens in a batch from which on making the matrix first takes fewer operations than any order of factors;
        infinity if none do. Forward and backward pass say the same: the latter doubles every product of the former,
        those that make the matrix included."""
        saved = self.macs(self.cheapest) - self.macs(MATERIALISED)
        return self.expansion / saved if saved > 0 and self.factored else math.inf

    def best_order(self, tokens: int) -> str:
        """The order that takes the fewest operations for a batch of so many tokens."""
        return MATERIALISED if tokens > self.materialise_from else self.cheapest

    def products(self) -> tuple[Product, ...]:
        """The products that a token takes at least, however large the batch."""
        dense = (Product(1, self.out, self.into),)
        return min([*self.orders.values(), dense], key=lambda steps: sum(step.macs for step in steps))

"""A dense matrix and a small change of it: W + scale D, where D is of any other structure (adapters).

With D of low rank this is LoRA (Hu et al. 2021), with Kronecker products LoKr (Edalati et al. 2022). With a magnitude m
for each row it is DoRA (Liu et al. 2024, equation 5), W' = m |W| (W + scale D) / |W + scale D| row by row; the paper's
magnitude is our m |W|, so that m begins at 1 whatever the matrix is. The last factor of D begins at zero: fresh
adapters change nothing. What stays frozen is not said here but by learning rates (``optim.lr_scale``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bonsaigpt.structure.base import Factor, Product, Structure

__all__ = ["BASE", "Adapted"]

BASE = "base"
"""The factor that is the dense matrix."""


@dataclass(frozen=True)
class Adapted(Structure):
    """A matrix and its change."""

    delta: Structure
    scale: float
    magnitude: bool = False
    """Whether each row has its length trained apart."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        *first, last = self.delta.factors
        # Each row of a normal factor gives values of about the size of its inputs.
        parts = [replace(factor, std=factor.shape[-1] ** -0.5) for factor in first]
        parts.append(replace(last, init="zeros"))
        own = Factor(name=BASE, shape=(self.out, self.into), matrix=True)
        changed = [replace(factor, name=f"delta.{factor.name}") for factor in parts]
        lengths = [Factor(name="magnitude", shape=(self.out,), init="ones")] if self.magnitude else []
        return (own, *changed, *lengths)

    @property
    def orders(self) -> dict[str, tuple[Product, ...]]:
        return {"base and delta": (Product(1, self.out, self.into), *self.delta.orders[self.delta.cheapest])}

    @property
    def expansion(self) -> int:
        return self.delta.expansion

    @property
    def materialise_from(self) -> float:
        """Never: the gradient of the whole matrix, which a frozen one does not need, would cost more than is saved."""
        return float("inf")

    @property
    def rank(self) -> int:
        return min(self.out, self.into)

    def expand(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        base = values[BASE]
        own = {name.removeprefix("delta."): value for name, value in values.items() if name.startswith("delta.")}
        W = base + self.scale * self.delta.expand(own)
        if not self.magnitude:
            return W
        lengths = values["magnitude"] * np.linalg.norm(base, axis=1)
        return W * (lengths / np.linalg.norm(W, axis=1))[:, None]

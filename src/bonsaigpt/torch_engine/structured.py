"""Weights that are made of factors: how each structure is applied, and the dense matrix that it stands for.

What a factored weight costs is counted in ``bonsaigpt.structure``; here are the products. The terms of a sum are never
looped over: they are stacked into the sides of two products, one of which sums over them. torch.kron is not used: it
fails on what is not contiguous and cannot be compiled (pytorch issues 54135, 185650).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.structure import MATERIALISED, Adapted, Kronecker, KroneckerColumns, LowRank, Monarch, Structure

__all__ = ["FactoredWeight", "Weight", "dense", "new_weight"]


class FactoredWeight(nn.Module):
    """The factors of one weight, under the names that the structure gives them, and the products with them."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure: Any = structure
        self.order: str | None = None
        """How it is applied; None: by whichever order takes the fewest operations for the batch at hand."""
        self._cheapest, self._materialise_from = structure.cheapest, structure.materialise_from
        for factor in structure.factors:
            if "." not in factor.name:  # else it is of a part that registers it
                self.register_parameter(factor.name, nn.Parameter(torch.empty(factor.shape)))

    def forward(self, x: Tensor) -> Tensor:
        """``x @ W.T`` over the last axis."""
        tokens_TI = x.reshape(-1, x.shape[-1])
        order = self.order or (MATERIALISED if len(tokens_TI) > self._materialise_from else self._cheapest)
        if order == MATERIALISED:
            return F.linear(x, self.dense())
        return self.multiply(tokens_TI, order).reshape(*x.shape[:-1], self.structure.out)

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        """``x @ W.T`` without ever making W; (T, in) to (T, out)."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """W, (out, in)."""
        raise NotImplementedError

    def term_norms(self) -> Tensor:
        """Frobenius norms of the two factors of each term (a scaler belongs to the first), (2, terms)."""
        raise NotImplementedError


Weight: TypeAlias = Tensor | FactoredWeight


def new_weight(structure: Structure) -> nn.Parameter | FactoredWeight:
    """Memory for a weight, not yet filled."""
    match structure:
        case KroneckerColumns():
            return _KroneckerColumnsWeight(structure)
        case Kronecker():
            return _KroneckerWeight(structure)
        case LowRank():
            return _LowRankWeight(structure)
        case Monarch():
            return _MonarchWeight(structure)
        case Adapted():
            return _AdaptedWeight(structure)
        case _:
            return nn.Parameter(torch.empty(structure.out, structure.into))


def dense(weight: Weight) -> Tensor:
    """The matrix (out, in), whatever it is made of; gradients reach the factors."""
    return weight if isinstance(weight, Tensor) else weight.dense()


def _from_left(matrix_PQ: Tensor, x_TQN: Tensor) -> Tensor:
    """``matrix @ x`` for every one of T tables, (T, P, N): as one product over all T N columns, for a batch of products
    would have a gradient of the matrix for every table."""
    if x_TQN.shape[2] == 1:
        return F.linear(x_TQN[:, :, 0], matrix_PQ)[:, :, None]
    return F.linear(x_TQN.mT, matrix_PQ).mT


class _KroneckerWeight(FactoredWeight):
    A: Tensor
    B: Tensor
    s: Tensor

    def _scaled(self) -> Tensor:
        return self.A * self.s[:, None, None] if self.structure.scalers else self.A

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        (m1, n1), (m2, n2), R = self.structure.a_shape, self.structure.b_shape, self.structure.count
        A, B, x_TJK = self._scaled(), self.B, x_TI.reshape(-1, n1, n2)
        if order == "B first":
            inner = F.linear(x_TJK, B.reshape(R * m2, n2)).reshape(-1, n1 * R, m2)
            return _from_left(A.permute(1, 2, 0).reshape(m1, n1 * R), inner).reshape(-1, m1 * m2)
        inner = _from_left(A.transpose(0, 1).reshape(m1 * R, n1), x_TJK).reshape(-1, R * n2)
        return F.linear(inner, B.transpose(0, 1).reshape(m2, R * n2)).reshape(-1, m1 * m2)

    def dense(self) -> Tensor:
        (m1, n1), (m2, n2), R = self.structure.a_shape, self.structure.b_shape, self.structure.count
        blocks = self._scaled().reshape(R, m1 * n1).T @ self.B.reshape(R, m2 * n2)
        return blocks.reshape(m1, n1, m2, n2).transpose(1, 2).reshape(m1 * m2, n1 * n2)

    def term_norms(self) -> Tensor:
        return torch.stack([self._scaled().flatten(1).norm(dim=1), self.B.flatten(1).norm(dim=1)])


class _KroneckerColumnsWeight(_KroneckerWeight):
    C: Tensor
    columns: Tensor

    def __init__(self, structure: KroneckerColumns) -> None:
        super().__init__(structure)
        self.register_buffer("columns", torch.tensor(structure.columns), persistent=False)

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        return super().multiply(x_TI, order) + F.linear(x_TI.index_select(1, self.columns), self.C)

    def dense(self) -> Tensor:
        W = super().dense()
        return W.index_add(1, self.columns, self.C.to(W.dtype))


class _LowRankWeight(FactoredWeight):
    U: Tensor
    V: Tensor

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        return F.linear(F.linear(x_TI, self.V), self.U)

    def dense(self) -> Tensor:
        return self.U @ self.V

    def term_norms(self) -> Tensor:
        return torch.stack([self.U.norm(dim=0), self.V.norm(dim=1)])


class _MonarchWeight(FactoredWeight):
    L: Tensor
    R: Tensor

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        (m1, n1), (m2, n2), r = self.structure.a_shape, self.structure.b_shape, self.structure.slice_rank
        inner_JTX = x_TI.reshape(-1, n1, n2).transpose(0, 1) @ self.R.mT
        inner_XTJ = inner_JTX.reshape(n1, -1, m2, r).permute(2, 1, 0, 3).reshape(m2, -1, n1 * r)
        return (inner_XTJ @ self.L.mT).permute(1, 2, 0).reshape(-1, m1 * m2)

    def dense(self) -> Tensor:
        (m1, n1), (m2, n2), r = self.structure.a_shape, self.structure.b_shape, self.structure.slice_rank
        # One product for every slice (i2, j1): (m1, r) by (r, n2).
        left = self.L.reshape(m2, m1, n1, r).transpose(1, 2)
        right = self.R.reshape(n1, m2, r, n2).transpose(0, 1)
        return (left @ right).permute(2, 0, 1, 3).reshape(m1 * m2, n1 * n2)

    def term_norms(self) -> Tensor:
        (_, n1), (m2, n2), r = self.structure.a_shape, self.structure.b_shape, self.structure.slice_rank
        left = self.L.reshape(m2, -1, n1, r).norm(dim=1)
        right = self.R.reshape(n1, m2, r, n2).norm(dim=-1).transpose(0, 1)
        return torch.stack([left.flatten(), right.flatten()])


class _AdaptedWeight(FactoredWeight):
    base: Tensor
    magnitude: Tensor
    delta: FactoredWeight

    def __init__(self, structure: Adapted) -> None:
        super().__init__(structure)
        delta = new_weight(structure.delta)
        assert isinstance(delta, FactoredWeight)
        self.delta = delta

    def _changed(self) -> Tensor:
        return self.base + self.structure.scale * self.delta.dense()

    def _lengths(self, changed: Tensor) -> Tensor:
        """Factors of the rows. The length of the changed rows counts as a constant (Liu et al. 2024, section 4.3)."""
        return self.magnitude * (self.base.detach().norm(dim=1) / changed.detach().norm(dim=1))

    def multiply(self, x_TI: Tensor, order: str) -> Tensor:
        y_TO = F.linear(x_TI, self.base) + self.structure.scale * self.delta(x_TI)
        return y_TO * self._lengths(self._changed()) if self.structure.magnitude else y_TO

    def dense(self) -> Tensor:
        changed = self._changed()
        return changed * self._lengths(changed)[:, None] if self.structure.magnitude else changed

    def term_norms(self) -> Tensor:
        return self.delta.term_norms()

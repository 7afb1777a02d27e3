"""Weights that are made of factors: how each structure is applied, and the dense matrix that it stands for.

A factored weight is one node of the tree of parameters, whose leaves are the factors. The products are those of
``torch_engine/structured.py``; what they cost is counted in ``bonsaigpt.structure``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bonsaigpt.structure import MATERIALISED, Adapted, Kronecker, KroneckerColumns, LowRank, Monarch, Structure

__all__ = ["Factored", "Weight", "dense", "multiply"]


@partial(jax.tree_util.register_dataclass, data_fields=["factors"], meta_fields=["structure"])
@dataclass(frozen=True)
class Factored:
    """The factors of one weight, under the names that the structure gives them."""

    factors: dict[str, Any]
    """Arrays; of a change of a weight (``Adapted``) in a dictionary of their own."""
    structure: Structure


Weight: TypeAlias = Array | Factored


def dense(weight: Weight) -> Array:
    """The matrix (out, in), whatever it is made of; gradients reach the factors."""
    if not isinstance(weight, Factored):
        return weight
    structure, f = weight.structure, weight.factors
    match structure:
        case Kronecker():
            W = jnp.einsum("rij,rkl->ikjl", _scaled(structure, f), f["B"]).reshape(structure.out, structure.into)
            if isinstance(structure, KroneckerColumns):
                W = W.at[:, jnp.array(structure.columns)].add(f["C"])
            return W
        case LowRank():
            return f["U"] @ f["V"]
        case Monarch():
            (m1, n1), (m2, n2), r = structure.a_shape, structure.b_shape, structure.slice_rank
            left, right = f["L"].reshape(m2, m1, n1, r), f["R"].reshape(n1, m2, r, n2)
            return jnp.einsum("bajr,jbrk->abjk", left, right).reshape(structure.out, structure.into)
        case Adapted():
            changed = _changed(structure, f)
            return changed * _lengths(f, changed).astype(changed.dtype)[:, None] if structure.magnitude else changed
        case _:
            raise AssertionError(f"{structure} is not made of factors")


def multiply(weight: Factored, x: Array) -> Array:
    """``x @ W.T`` over the last axis, in the order that takes the fewest operations for so many tokens."""
    structure, f = weight.structure, weight.factors
    x_TI = x.reshape(-1, x.shape[-1])
    order = structure.best_order(len(x_TI))
    if order == MATERIALISED:
        return x @ dense(weight).T
    match structure:
        case Kronecker():
            y_TO = _kronecker(structure, f, x_TI, order)
            if isinstance(structure, KroneckerColumns):
                y_TO = y_TO + x_TI[:, jnp.array(structure.columns)] @ f["C"].T
        case LowRank():
            y_TO = x_TI @ f["V"].T @ f["U"].T
        case Monarch():
            (m1, n1), (m2, n2), r = structure.a_shape, structure.b_shape, structure.slice_rank
            inner_JTX = x_TI.reshape(-1, n1, n2).swapaxes(0, 1) @ f["R"].mT
            inner_XTJ = inner_JTX.reshape(n1, -1, m2, r).transpose(2, 1, 0, 3).reshape(m2, -1, n1 * r)
            y_TO = (inner_XTJ @ f["L"].mT).transpose(1, 2, 0).reshape(-1, m1 * m2)
        case Adapted():
            y_TO = x_TI @ f["base"].T + structure.scale * multiply(Factored(f["delta"], structure.delta), x_TI)
            if structure.magnitude:
                y_TO = y_TO * _lengths(f, _changed(structure, f)).astype(y_TO.dtype)
        case _:
            raise AssertionError(f"{structure} is not made of factors")
    return y_TO.reshape(*x.shape[:-1], structure.out)


def _changed(structure: Adapted, factors: dict[str, Any]) -> Array:
    return factors["base"] + structure.scale * dense(Factored(factors["delta"], structure.delta))


def _lengths(factors: dict[str, Any], changed: Array) -> Array:
    """Factors of the rows. The length of the changed rows counts as a constant (Liu et al. 2024, section 4.3)."""
    base, changed = jax.lax.stop_gradient((factors["base"], changed))
    return factors["magnitude"] * (jnp.linalg.norm(base, axis=1) / jnp.linalg.norm(changed, axis=1))


def _scaled(structure: Kronecker, factors: dict[str, Array]) -> Array:
    A = factors["A"]
    return A * factors["s"].astype(A.dtype)[:, None, None] if structure.scalers else A


def _kronecker(structure: Kronecker, factors: dict[str, Array], x_TI: Array, order: str) -> Array:
    """The terms are stacked into the sides of two products, one of which sums over them."""
    (m1, n1), (m2, n2), R = structure.a_shape, structure.b_shape, structure.count
    A, B, x_TJK = _scaled(structure, factors), factors["B"], x_TI.reshape(-1, n1, n2)
    if order == "B first":
        inner = (x_TJK @ B.reshape(R * m2, n2).T).reshape(-1, n1 * R, m2)
        left = A.transpose(1, 2, 0).reshape(m1, n1 * R)
        return (inner.mT @ left.T).mT.reshape(-1, m1 * m2)
    inner = (x_TJK.mT @ A.swapaxes(0, 1).reshape(m1 * R, n1).T).mT.reshape(-1, R * n2)
    return (inner.reshape(-1, m1, R * n2) @ B.swapaxes(0, 1).reshape(m2, R * n2).T).reshape(-1, m1 * m2)

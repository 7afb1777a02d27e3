"""From a dense weight, and what is known of its inputs, to the factors of any structure: one door for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bonsaigpt.compress.als import activation_aware
from bonsaigpt.compress.exact import monarch_projection, pruned_kronecker, truncated_svd, van_loan, whitened_svd
from bonsaigpt.structure import Arrays, Kronecker, KroneckerColumns, LowRank, Monarch, Structure

__all__ = ["fit", "fit_rows", "pruned", "schur_complement", "strongest_columns"]


def pruned(structure: Structure, W: np.ndarray) -> Arrays:
    """Factors that keep evenly spread rows (or columns) of a weight and repeat them: for one Kronecker term whose B is
    a row or a column.

    Raises:
        ValueError: of any other structure.
    """
    if type(structure) is not Kronecker or structure.count > 1:
        raise ValueError("pruning fits a single Kronecker term whose B is a row or a column")
    A, B = pruned_kronecker(W, structure.a_shape)
    return {"A": A, "B": B} | ({"s": np.ones(1)} if structure.scalers else {})


def fit(structure: Structure, W: np.ndarray, C: np.ndarray | None = None, *, sweeps: int = 10) -> Arrays:
    """Factors (float64, by their names) of a structure that is to stand for ``W`` (out, in).

    Args:
        C: E[x x^T] of the inputs, (in, in): then the output is fitted. None: the weight is, blind to inputs. Monarch's
            slices are fitted blind in either case.
        sweeps: of alternating least squares at most, where Kronecker sums are fitted to outputs.
    """
    C_or_even = np.eye(structure.into) if C is None else C
    match structure:
        case KroneckerColumns():
            return _fit_columns(structure, W, C_or_even, sweeps)
        case Kronecker():
            return _fit_kronecker(structure, W, C, sweeps)
        case LowRank():
            U, V = truncated_svd(W, structure.rank) if C is None else whitened_svd(W, C, structure.rank)
            return {"U": U, "V": V}
        case Monarch():
            L, R = monarch_projection(W, structure.a_shape, structure.slice_rank)
            return {"L": L, "R": R}
        case _:
            return {"": W.astype(np.float64)}


def fit_rows(structure: Structure, W: np.ndarray, shares: np.ndarray) -> Arrays:
    """Factors of a table whose rows are looked up, each as often as ``shares`` (rows,) says: the fit to the output of
    the transposed matrix for inputs of one entry each. Monarch and kept columns are fitted blind to it."""
    C = np.diag(shares)
    match structure:
        case KroneckerColumns():
            return fit(structure, W)
        case Kronecker():
            turned = replace(structure, out=structure.into, into=structure.out, a_shape=structure.a_shape[::-1])
            found = fit(turned, W.T, C)
            return found | {name: found[name].transpose(0, 2, 1) for name in ("A", "B")}
        case LowRank():
            found = fit(replace(structure, out=structure.into, into=structure.out), W.T, C)
            return {"U": found["V"].T, "V": found["U"].T}
        case _:
            return fit(structure, W)


def strongest_columns(W: np.ndarray, C: np.ndarray, count: int) -> tuple[int, ...]:
    """The inputs whose own part of the output is largest: E[x_j^2] ||W_j||^2."""
    power = np.diag(C) * np.square(W).sum(axis=0)
    return tuple(sorted(np.argsort(-power, kind="stable")[:count].tolist()))


def _fit_kronecker(structure: Kronecker, W: np.ndarray, C: np.ndarray | None, sweeps: int) -> Arrays:
    if C is None:
        A, B = van_loan(W, structure.a_shape, structure.count)
    else:
        found = activation_aware(W, C, structure.a_shape, structure.count, sweeps=sweeps)
        A, B = found.A, found.B
    scalers = {"s": np.ones(structure.count)} if structure.scalers else {}
    return {"A": A, "B": B} | scalers


def _fit_columns(structure: KroneckerColumns, W: np.ndarray, C: np.ndarray, sweeps: int) -> Arrays:
    """Whatever the products are, the best columns follow from them; what these cannot mend is an error in the Schur
    complement of their moments. So the products are fitted to that, and the columns to what is left."""
    rest, mend = schur_complement(C, structure.columns)
    factors = _fit_kronecker(structure, W, rest, sweeps)
    products = Kronecker.expand(structure, factors)
    return factors | {"C": (W - products) @ mend.T}


def schur_complement(C: np.ndarray, columns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What is left of second moments where the inputs of ``columns`` can make up for errors, and the map (columns, in)
    by which they do: E x is best mended by adding E mend^T to the columns."""
    kept = list(columns)
    ridge = 1e-9 * np.trace(C) / len(C) * np.eye(len(kept))
    mend = np.linalg.solve(C[np.ix_(kept, kept)] + ridge, C[kept])
    rest = C - C[:, kept] @ mend
    return (rest + rest.T) / 2, mend

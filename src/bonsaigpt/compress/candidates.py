"""What a weight could be stored as: every legal shape and size of a kind, what it takes, and how well it fits.

How well is said twice. ``energy`` is the share of ||W||^2 that the nearest such matrix keeps; ``error`` the share of
the output's power E||W x||^2 that is lost on real inputs. Low rank and Monarch have both exactly. For sums of Kronecker
products one spectrum gives all numbers of terms at once, but in the nearest separable metric (``als.separable_roots``):
what alternating least squares gets out of a shape is measured once, and the rest of its curve scaled by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from bonsaigpt.compress.als import separable_roots, whitened
from bonsaigpt.compress.exact import monarch_projection, output_error, root
from bonsaigpt.compress.fit import fit, schur_complement, strongest_columns
from bonsaigpt.config import (
    DenseStructure,
    KroneckerColumnsStructure,
    KroneckerStructure,
    LowRankStructure,
    MonarchStructure,
    WeightStructure,
)
from bonsaigpt.structure import Kronecker, Monarch, Structure, make
from bonsaigpt.structure.kronecker import rearrange

__all__ = ["Candidate", "Curve", "at_size", "calibrated", "candidates", "dense_candidate", "shapes"]

_MONARCH_RANKS = 4
_SOLVE = 2
"""Unknowns of a least-squares step (terms times inputs of a factor), over the sides of the weight, up to which a shape
is taken: a step's time goes as their cube."""
_SWEEPS = 4
"""Of those fits: within some per cent of the error that ten come to."""
_SIZES = (0.4, 1.6)
"""Where a curve of Kronecker sums is measured besides, over the size that is asked for."""
_COLUMNS = 32
"""``kronecker+sparse`` keeps one column of so many."""

Curve: TypeAlias = tuple["Candidate", ...]


@dataclass(frozen=True)
class Candidate:
    """One way to store a weight."""

    setting: WeightStructure
    structure: Structure
    energy: float
    """Share of ||W||^2 that the nearest one keeps."""
    error: float
    """Share of the output's power that is lost, predicted."""

    @property
    def stored(self) -> int:
        """Values."""
        return self.structure.parameters

    @property
    def words(self) -> str:
        """``32x8 (x) 16x16, 64 terms``."""
        setting, structure = self.setting, self.structure
        if isinstance(setting, LowRankStructure):
            return f"low rank {setting.rank}"
        if isinstance(structure, Monarch):
            return f"Monarch {structure.a_shape[0]}x{structure.a_shape[1]}, rank {structure.slice_rank}"
        if isinstance(structure, Kronecker):
            (m1, n1), (m2, n2) = structure.a_shape, structure.b_shape
            kept = f", {len(setting.columns)} columns" if isinstance(setting, KroneckerColumnsStructure) else ""
            return f"{m1}x{n1} (x) {m2}x{n2}, {structure.count} term{'s' * (structure.count > 1)}{kept}"
        return "dense"


def dense_candidate(out: int, into: int) -> Candidate:
    """The weight as it is."""
    return Candidate(DenseStructure(), make(DenseStructure(), out, into), 1.0, 0.0)


def candidates(kind: str, W: np.ndarray, C: np.ndarray | None = None) -> list[Curve]:
    """All that a weight (out, in) could be of one kind, smaller than itself: a curve from few to many values for each
    shape. ``C`` is E[x x^T]; without it all inputs count alike."""
    W, C = W.astype(np.float64), np.eye(W.shape[1]) if C is None else C
    found = _KINDS[kind](W, C)
    return [curve for curve in found if curve]


def calibrated(curves: list[Curve], stored: int, W: np.ndarray, C: np.ndarray) -> tuple[Curve, Candidate, np.ndarray]:
    """The curve to take of all shapes, corrected by real fits; and the fit at about so many values: the candidate with
    its real error, and the matrix that its factors stand for.

    Of sums of Kronecker products it is the shape whose factors are nearest to square. Others, up to vectors, often have
    a smaller error alone, but cost more in a sequence, where later maps make up for errors (docs/LOG.md). Of others it
    is the one with the least error.

    The correction is measured at a few sizes and interpolated between them. Sizes below the smallest are left out: a
    spectrum in another metric says too little of where hardly anything is left.
    """
    curves = [curve for curve in curves if curve[0].stored <= stored] or [min(curves, key=lambda c: c[0].stored)]
    curve = min(curves, key=lambda curve: (-_squareness(curve), at_size(curve, stored).error))

    def fitted(candidate: Candidate) -> tuple[float, np.ndarray]:
        matrix = candidate.structure.expand(fit(candidate.structure, W, C, sweeps=_SWEEPS))
        return max(output_error(W, matrix, C), 1e-9), matrix

    chosen = at_size(curve, stored)
    error, matrix = fitted(chosen)
    measured = {chosen.stored: error / max(chosen.error, 1e-9)}
    if isinstance(chosen.structure, Kronecker):
        for other in (at_size(curve, int(factor * stored)) for factor in _SIZES):
            if other.stored not in measured:
                measured[other.stored] = fitted(other)[0] / max(other.error, 1e-9)
    sizes = sorted(measured)
    ratios = np.log([measured[size] for size in sizes])
    least = sizes[0] if isinstance(chosen.structure, Kronecker) else 0
    corrected = tuple(
        replace(c, error=c.error * float(np.exp(np.interp(np.log(c.stored), np.log(sizes), ratios))))
        for c in curve
        if c.stored >= least
    )
    return corrected, replace(chosen, error=error), matrix


def at_size(curve: Curve, stored: int) -> Candidate:
    """The largest that stores at most so many values, or else the smallest."""
    return max((c for c in curve if c.stored <= stored), key=lambda c: c.stored, default=curve[0])


def _squareness(curve: Curve) -> float:
    structure = curve[0].structure
    if not isinstance(structure, Kronecker):
        return 0.0
    sides = np.log2([*structure.a_shape, *structure.b_shape])
    return -float(sides.max() - sides.min())


def shapes(out: int, into: int) -> Iterator[tuple[int, int]]:
    """(m1, n1): rows and columns of A for every Kronecker product of two factors neither of which is a number."""
    for m1 in (d for d in range(1, out + 1) if out % d == 0):
        for n1 in (d for d in range(1, into + 1) if into % d == 0):
            if 1 < m1 * n1 < out * into:
                yield m1, n1


def _kronecker(W: np.ndarray, C: np.ndarray) -> list[Curve]:
    def setting(a_shape: tuple[int, int], terms: int) -> WeightStructure:
        return KroneckerStructure(a_shape=a_shape, terms=terms)

    return _sums(W, C, C, setting)


def _columns(W: np.ndarray, C: np.ndarray) -> list[Curve]:
    kept = strongest_columns(W, C, max(1, W.shape[1] // _COLUMNS))

    def setting(a_shape: tuple[int, int], terms: int) -> WeightStructure:
        return KroneckerColumnsStructure(a_shape=a_shape, terms=terms, columns=kept)

    return _sums(W, C, schur_complement(C, kept)[0], setting)


def _sums(
    W: np.ndarray, C: np.ndarray, metric: np.ndarray, setting: Callable[[tuple[int, int], int], WeightStructure]
) -> list[Curve]:
    """``metric``: what the products are fitted in, of which ``C`` says how much there is in all."""
    (m, n), curves = W.shape, list[Curve]()
    scale = float(np.trace(metric)) / n
    ridged = metric / scale + 1e-6 * np.eye(n)
    power = float(np.vdot(W @ C, W)) / scale
    roots = {n1: separable_roots(ridged, n1) for n1 in {n1 for _, n1 in shapes(m, n)}}
    for a_shape in shapes(m, n):
        (half1, _), (half2, _) = roots[a_shape[1]]
        lost = _tails(rearrange(whitened(W, half1, half2), a_shape)) / power
        kept = 1.0 - _tails(rearrange(W, a_shape)) / float(np.square(W).sum())
        curve: list[Candidate] = []
        for terms in range(1, len(lost)):
            structure = make(chosen := setting(a_shape, terms), m, n)
            widest = max(a_shape[1], n // a_shape[1])
            if structure.parameters >= m * n or terms * widest > _SOLVE * (m + n):
                break
            curve.append(Candidate(chosen, structure, float(kept[terms]), float(lost[terms])))
        curves.append(tuple(curve))
    return curves


def _low_rank(W: np.ndarray, C: np.ndarray) -> list[Curve]:
    (m, n), half = W.shape, root(C)[0]
    lost, kept = _tails(W @ half), _tails(W)
    curve: list[Candidate] = []
    for rank in range(1, min(m, n)):
        structure = make(setting := LowRankStructure(rank=rank), m, n)
        if structure.parameters >= m * n:
            break
        curve.append(Candidate(setting, structure, float(1 - kept[rank] / kept[0]), float(lost[rank] / lost[0])))
    return [tuple(curve)]


def _monarch(W: np.ndarray, C: np.ndarray) -> list[Curve]:
    (m, n), curves = W.shape, list[Curve]()
    even = np.eye(n)
    for m1, n1 in shapes(m, n):
        curve: list[Candidate] = []
        for rank in range(1, min(_MONARCH_RANKS, m1, n // n1) + 1):
            structure = make(setting := MonarchStructure(a_shape=(m1, n1), rank=rank), m, n)
            if structure.parameters >= m * n:
                break
            L, R = monarch_projection(W, (m1, n1), rank)
            near = structure.expand({"L": L, "R": R})
            curve.append(Candidate(setting, structure, 1 - output_error(W, near, even), output_error(W, near, C)))
        curves.append(tuple(curve))
    return curves


_KINDS: dict[str, Callable[[np.ndarray, np.ndarray], list[Curve]]] = {
    "kronecker": _kronecker,
    "kronecker+sparse": _columns,
    "lowrank": _low_rank,
    "monarch": _monarch,
}


def _tails(M: np.ndarray) -> np.ndarray:
    """Sums of all but the first 0, 1, 2, ... squared singular values, by the smaller Gram matrix."""
    small = M @ M.T if M.shape[0] <= M.shape[1] else M.T @ M
    squares = np.maximum(np.linalg.eigvalsh(small), 0.0)
    return np.concatenate([np.cumsum(squares)[::-1], [0.0]])

"""Another order of an MLP's hidden units: the same function, and a better fit of what depends on order.

A hidden unit is a row of c_fc (and c_gate) with its bias, and a column of c_proj. Moved together, nothing changes. But
a Kronecker product shares its factors among units by their place: of A (m1, n1) and B (m2, n2) for c_fc, m2 neighbours
share a row of A. So units that read alike belong side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bonsaigpt.compress.exact import root
from bonsaigpt.structure import Arrays

__all__ = ["like_units", "permute_hidden"]


def permute_hidden(values: Arrays, mlp: str, order: Sequence[int] | np.ndarray) -> Arrays:
    """Dense values with the hidden units of one MLP (``transformer.h.0.mlp``) in another order: unit ``i`` is the one
    that was ``order[i]``. The model computes what it did, up to the rounding of sums."""
    moved = dict(values)
    for name in (f"{mlp}.{part}" for part in ("c_fc.weight", "c_fc.bias", "c_gate.weight", "c_gate.bias")):
        if name in values:
            moved[name] = np.ascontiguousarray(values[name][order])
    moved[f"{mlp}.c_proj.weight"] = np.ascontiguousarray(values[f"{mlp}.c_proj.weight"][:, order])
    return moved


def like_units(W: np.ndarray, C: np.ndarray, groups: int, *, rounds: int = 20) -> np.ndarray:
    """An order in which the rows of c_fc's ``W`` stand in ``groups`` of equal size, each of rows whose outputs on
    inputs of second moments ``C`` go together: k-means of their directions, with room for so many in each group.

    Raises:
        ValueError: the rows cannot be shared out evenly.
    """
    count = len(W)
    if count % groups:
        raise ValueError(f"{count} hidden units do not make {groups} groups of one size")
    rows = W.astype(np.float64) @ root(C)[0]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    centres, found = rows[:: count // groups], np.zeros(count, dtype=int)
    for _ in range(rounds):
        before = found
        found = _shared_out(rows @ centres.T, count // groups)
        if np.array_equal(before, found):
            break
        centres = np.stack([rows[found == g].mean(axis=0) for g in range(groups)])
    return np.argsort(found, kind="stable")


def _shared_out(likeness: np.ndarray, size: int) -> np.ndarray:
    """A group for every row, the nearest pairs first, as long as there is room."""
    count, groups = likeness.shape
    found, room = np.full(count, -1), np.full(groups, size)
    for pair in np.argsort(-likeness, axis=None, kind="stable").tolist():
        row, group = divmod(pair, groups)
        if found[row] < 0 and room[group]:
            found[row] = group
            room[group] -= 1
    return found

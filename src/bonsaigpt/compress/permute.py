"""Another order of an MLP's hidden units: the same function, and perhaps a better fit of what depends on order.

A hidden unit is a row of c_fc (and c_gate) with its bias, and a column of c_proj. Moved together, nothing changes; but a
Kronecker product shares its factors among units by their place, so a place among like units is a cheaper one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bonsaigpt.structure import Arrays

__all__ = ["permute_hidden", "swaps"]


def permute_hidden(values: Arrays, mlp: str, order: Sequence[int] | np.ndarray) -> Arrays:
    """Dense values of a model with the hidden units of one MLP (``transformer.h.0.mlp``) in another order: unit ``i`` is
    the one that was ``order[i]``. The model computes what it did, up to the rounding of sums."""
    moved = dict(values)
    for name in (f"{mlp}.{part}" for part in ("c_fc.weight", "c_fc.bias", "c_gate.weight", "c_gate.bias")):
        if name in values:
            moved[name] = np.ascontiguousarray(values[name][order])
    moved[f"{mlp}.c_proj.weight"] = np.ascontiguousarray(values[f"{mlp}.c_proj.weight"][:, order])
    return moved


def swaps(cost: np.ndarray) -> np.ndarray:
    """An order that lowers ``sum of cost[order[i], i]`` from the one at hand, by exchanging the pairs that gain most
    until none gains; ``cost[i, j]`` is of unit i at place j. Deterministic, and never worse than where it began."""
    order = np.arange(len(cost))
    while True:
        here = cost[order]
        own = np.diag(here)
        gain = own[:, None] + own[None, :] - here - here.T
        partner = gain.argmax(axis=1)
        best = gain[np.arange(len(cost)), partner]
        taken = np.zeros(len(cost), dtype=bool)
        for i in np.argsort(-best, kind="stable"):
            j = partner[i]
            if best[i] <= 1e-12 * max(1e-300, np.abs(own).sum()) or taken[i] or taken[j]:
                continue
            order[[i, j]] = order[[j, i]]
            taken[[i, j]] = True
        if not taken.any():
            return order

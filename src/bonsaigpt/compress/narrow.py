"""Fewer hidden units in an MLP: which stay, and what the map behind them makes of those that do.

A unit costs what the output loses without it when the others make up for it as far as they can: ||w_j||^2 / (C^-1)_jj
(optimal brain surgeon, Hassibi and Stork 1993, equation 5). The cheapest go first, a few at a time, and what they leave
behind is shared out among the rest before the next ones are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bonsaigpt.compress.exact import even_rows
from bonsaigpt.config import NarrowStructure
from bonsaigpt.structure import Arrays

__all__ = ["NarrowCandidate", "cut_hidden", "narrow_candidates", "units_to_keep"]

_ROUNDS = 32
"""The hidden layer is cut by one part in so many of itself at a time."""


@dataclass(frozen=True)
class NarrowCandidate:
    """An MLP with so many hidden units; what ``Candidate`` is for one weight."""

    setting: NarrowStructure
    stored: int
    energy: float
    """Share of c_proj's ||W||^2 in the units that stay."""
    error: float
    """Share of the output's power that is lost on real inputs."""
    macs: int
    """Multiply-adds a token."""

    @property
    def words(self) -> str:
        """``256 hidden units``."""
        return f"{self.setting.hidden} hidden units"


def narrow_candidates(W: np.ndarray, C: np.ndarray, each: int) -> list[NarrowCandidate]:
    """All widths of an MLP, from wide to narrow, itself included.

    Args:
        W: of c_proj, (out, hidden); ``C``: the second moments of its inputs.
        each: values that a hidden unit stands for in all weights of the MLP.
    """
    W = W.astype(np.float64)
    power, energy = float(np.vdot(W @ C, W)), float(np.square(W).sum())
    found: list[NarrowCandidate] = []
    for kept, weight in _cuts(W, C):
        lost = (
            power - 2 * float(np.vdot(weight, W @ C[:, kept])) + float(np.vdot(weight @ C[np.ix_(kept, kept)], weight))
        )
        share = float(np.square(W[:, kept]).sum()) / energy
        size = len(kept)
        setting = NarrowStructure(hidden=size)
        found.append(NarrowCandidate(setting, size * each, share, max(lost, 0.0) / power, size * each))
    return found


def units_to_keep(W: np.ndarray, C: np.ndarray | None, hidden: int) -> np.ndarray:
    """The numbers, ascending, of the units that stay; without ``C`` evenly spread ones (pruning of even rows)."""
    if C is None:
        return even_rows(W.shape[1], hidden)
    return next(kept for kept, _ in _cuts(W.astype(np.float64), C, hidden) if len(kept) == hidden)


def cut_hidden(values: Arrays, mlp: str, kept: np.ndarray) -> Arrays:
    """Dense values in which one MLP (``transformer.h.0.mlp``) has these hidden units alone."""
    cut = dict(values)
    for name in (f"{mlp}.{part}" for part in ("c_fc.weight", "c_fc.bias", "c_gate.weight", "c_gate.bias")):
        if name in values:
            cut[name] = np.ascontiguousarray(values[name][kept])
    cut[f"{mlp}.c_proj.weight"] = np.ascontiguousarray(values[f"{mlp}.c_proj.weight"][:, kept])
    return cut


def _cuts(W: np.ndarray, C: np.ndarray, hidden: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Units that are left and the best weight on them, ever fewer, down to ``hidden``."""
    count = W.shape[1]
    step = max(1, count // _ROUNDS)
    ridged = C + 1e-6 * np.trace(C) / count * np.eye(count)
    wished, kept, weight = W @ ridged, np.arange(count), W
    while True:
        yield kept, weight
        going = min(step, len(kept) - hidden)
        if going <= 0:
            return
        inverse = np.linalg.inv(ridged[np.ix_(kept, kept)])
        price = np.square(weight).sum(axis=0) / np.diag(inverse)
        kept = np.sort(kept[np.argsort(price, kind="stable")[going:]])
        weight = np.linalg.solve(ridged[np.ix_(kept, kept)], wished[:, kept].T).T

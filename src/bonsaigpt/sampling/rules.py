"""The rules that cut a distribution: top-k, top-p, min-p, typical. Pure functions of one row.

Each takes the candidates that are left, as ids in ascending order and their weights (probabilities but for a common
factor, so that nothing is divided that need not be), and returns fewer. What is dropped early costs nothing later, and
a vocabulary of 50,000 is never sorted whole where a part of it decides.
"""

from __future__ import annotations

import numpy as np

from bonsaigpt.sampling.settings import Sampling

__all__ = ["candidates"]

Ids = np.ndarray | None
"""Token ids in ascending order; None means 0 .. V-1."""

_FIRST_LOOK = 512
"""Candidates that are sorted at first; eight times as many if they do not suffice."""


def candidates(logits_V: np.ndarray, sampling: Sampling, largest: float) -> tuple[Ids, np.ndarray]:
    """The tokens to draw from after the temperature (above 0) and the cuts, and their weights, in float64.

    Args:
        logits_V: minus infinity for what the constraint forbids.
        largest: of these logits.
    """
    ids: Ids = None
    k = sampling.top_k
    if k is not None and k < len(logits_V):
        kth = np.partition(logits_V, -k)[-k]
        ids = (logits_V >= kth).nonzero()[0]
        logits_V = logits_V[ids]
    weights = logits_V.astype(np.float64)
    weights -= largest  # before the division: no temperature makes an infinity of it
    weights /= sampling.temperature
    np.exp(weights, out=weights)
    if sampling.top_p is not None and sampling.top_p < 1:
        ids, weights = _keep(ids, weights, _top_p(weights, sampling.top_p))
    if sampling.min_p is not None:  # Nguyen et al. 2024, section 3; the largest weight is 1
        ids, weights = _keep(ids, weights, (weights >= sampling.min_p).nonzero()[0])
    if sampling.typical_p is not None and sampling.typical_p < 1:
        ids, weights = _keep(ids, weights, _typical(weights, sampling.typical_p))
    return ids, weights


def _keep(ids: Ids, weights: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return kept if ids is None else ids[kept], weights[kept]


def _top_p(weights: np.ndarray, p: float) -> np.ndarray:
    """Holtzman et al. 2020, equation 3: the smallest set of likeliest tokens whose probability reaches p."""
    total = np.add.reduce(weights)
    # All tokens below (1 - p) / V together have less than 1 - p: the others reach p without them.
    likely = (weights >= (1 - p) * total / len(weights)).nonzero()[0]
    return _smallest_set(likely, weights, -weights[likely], p * total)


def _typical(weights: np.ndarray, p: float) -> np.ndarray:
    """Meister et al. 2022, equation 10: the smallest set of tokens of probability p whose surprise -log q is nearest
    to its expectation, the entropy."""
    total = np.add.reduce(weights)
    possible = weights.nonzero()[0]
    shares = weights[possible] / total
    surprise = -np.log(shares)
    entropy = np.add.reduce(shares * surprise)
    return _smallest_set(possible, weights, np.abs(surprise - entropy), p * total)


def _smallest_set(among: np.ndarray, weights: np.ndarray, cost: np.ndarray, weight: float) -> np.ndarray:
    """The tokens of least cost (of equals the first) until they weigh so much together, in ascending order."""
    size = _FIRST_LOOK
    while True:
        if size < len(cost):
            near = (cost <= np.partition(cost, size)[size]).nonzero()[0]
            ranked = near[cost[near].argsort(kind="stable")]
        else:
            ranked = cost.argsort(kind="stable")
        each = weights[among[ranked]]
        before = np.add.accumulate(each) - each  # that of all earlier ones: the first is always kept
        kept = ranked[before < weight]
        if len(kept) < len(ranked) or size >= len(cost):
            kept.sort()
            return among[kept]
        size *= 8

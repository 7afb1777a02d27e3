"""From logits to a token: temperature, top-k, top-p; and where the randomness comes from.

The noise of row ``r`` at position ``t`` is a function of (seed, r, t) alone, so the same seed gives the same text
whatever else is generated beside it, in one piece or streamed, cached or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bonsaigpt.errors import GenerateError
from bonsaigpt.randomness import key, uniform

__all__ = ["Sampling", "choose", "probabilities"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw a token."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only; ties with the k-th stay in."""
    top_p: float | None = None
    """Draw from the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020)."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise GenerateError(f"temperature = {self.temperature} cannot be: use 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise GenerateError(f"top_k = {self.top_k} leaves no token: use 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GenerateError(f"top_p = {self.top_p} is no probability: use more than 0 and at most 1")


def probabilities(logits_BV: np.ndarray, settings: Sampling) -> np.ndarray:
    """The distribution that a token is drawn from, (B, V) float64; rows sum to 1."""
    logits = logits_BV.astype(np.float64)
    if not np.isfinite(logits).all():
        raise GenerateError("the model's logits are not finite: its training diverged; use an earlier checkpoint")
    if settings.temperature == 0:
        best = np.zeros_like(logits)
        best[np.arange(len(logits)), logits.argmax(axis=1)] = 1.0  # the first of equals, in every engine
        return best
    logits = logits / settings.temperature
    if settings.top_k is not None and settings.top_k < logits.shape[1]:
        kth = np.partition(logits, -settings.top_k, axis=1)[:, -settings.top_k, None]
        logits = np.where(logits < kth, -np.inf, logits)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    if settings.top_p is not None and settings.top_p < 1:
        order = np.argsort(-probs, axis=1, kind="stable")
        ranked = np.take_along_axis(probs, order, axis=1)
        before = np.cumsum(ranked, axis=1) - ranked  # mass of all likelier tokens: the first is always kept
        np.put_along_axis(probs, order, np.where(before < settings.top_p, ranked, 0.0), axis=1)
        probs /= probs.sum(axis=1, keepdims=True)
    return probs


def choose(logits_BV: np.ndarray, settings: Sampling, *, position: int) -> np.ndarray:
    """Draw the token at ``position`` of each row, (B,) int64, by inverting the cumulative distribution."""
    probs = probabilities(logits_BV, settings)
    noise = uniform(key(settings.seed, "sample", position), np.arange(len(probs)))
    cumulative = np.cumsum(probs, axis=1)
    # Scaled by the sum, the draw stays below the last step even if rounding left it short of 1; counting the steps
    # at or below it never lands on a token of probability zero.
    return np.sum(cumulative <= noise[:, None] * cumulative[:, -1:], axis=1).astype(np.int64)

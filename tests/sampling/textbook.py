"""The rules of sampling as their papers state them, one token at a time: what the fast ones must equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bonsaigpt.sampling import Sampling

__all__ = ["CUTS", "textbook"]


def _normalised(p: list[float]) -> list[float]:
    total = math.fsum(p)
    return [x / total for x in p]


def top_k(p: list[float], s: Sampling) -> list[float]:
    if s.top_k is None or s.top_k >= len(p):
        return p
    kth = sorted(p, reverse=True)[s.top_k - 1]
    return [x if x >= kth else 0.0 for x in p]


def _reaching(p: list[float], order: Sequence[int], share: float) -> list[float]:
    kept, mass = set(), 0.0
    for i in order:
        if mass >= share:
            break
        kept.add(i)
        mass += p[i]
    return [x if i in kept else 0.0 for i, x in enumerate(p)]


def top_p(p: list[float], s: Sampling) -> list[float]:
    if s.top_p is None:
        return p
    return _reaching(p, sorted(range(len(p)), key=lambda i: -p[i]), s.top_p)


def min_p(p: list[float], s: Sampling) -> list[float]:
    return p if s.min_p is None else [x if x >= s.min_p * max(p) else 0.0 for x in p]


def typical(p: list[float], s: Sampling) -> list[float]:
    if s.typical_p is None:
        return p
    entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
    possible = [i for i, x in enumerate(p) if x > 0]
    return _reaching(p, sorted(possible, key=lambda i: abs(-math.log(p[i]) - entropy)), s.typical_p)


CUTS = [top_k, top_p, min_p, typical]


def textbook(
    logits: Sequence[float],
    s: Sampling,
    *,
    prompt: Sequence[int] = (),
    said: Sequence[int] = (),
    allowed: Sequence[bool] | None = None,
    cuts: Sequence = CUTS,
) -> list[float]:
    """The distribution that a token is drawn from."""
    x = list(map(float, logits))
    for i in range(len(x)):
        if i in said or i in prompt:
            x[i] = x[i] / s.repetition_penalty if x[i] > 0 else x[i] * s.repetition_penalty
        x[i] -= s.frequency_penalty * list(said).count(i)
        x[i] -= s.presence_penalty * (i in said)
        x[i] += s.logit_bias.get(i, 0.0)
        if allowed is not None and not allowed[i]:
            x[i] = -math.inf
    if s.temperature == 0:
        return [float(i == x.index(max(x))) for i in range(len(x))]
    p = _normalised([math.exp((v - max(x)) / s.temperature) for v in x])
    for cut in cuts:
        p = _normalised(cut(p, s))
    return p

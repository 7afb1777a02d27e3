"""What a few repetitions say: a mean with its interval, and a difference paired by seed with its p-value.

Seeds are few (three to ten), so the normal distribution would promise intervals far too narrow: with three values
1.96 standard errors stand where 4.30 are needed. Student's t is exact for normal errors, and for whole degrees of
freedom its probabilities are finite sums, so no special function is approximated here. Losses token by token are many,
and neighbours are alike: their means have intervals from a bootstrap over blocks of text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bonsaigpt.randomness import generator

__all__ = [
    "Difference",
    "Estimate",
    "bootstrap",
    "estimate",
    "paired_difference",
    "slope",
    "student_t_critical",
    "student_t_within",
    "unbeaten",
    "with_margin",
]

_BLOCK = 256
"""Tokens that are drawn together in the bootstrap: neighbours are no independent measurements."""
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over repetitions, and how far it may be from the truth."""

    mean: float
    n: int
    """Repetitions."""
    standard_error: float | None
    """Of the mean; None for a single value, which says nothing about its spread."""
    margin: float | None
    """Half the width of the confidence interval; None for a single value."""
    level: float
    """Of the interval: at 0.95, nineteen of twenty such intervals hold the true mean."""

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.margin is None else self.mean - self.margin

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.margin is None else self.mean + self.margin

    def text(self, form: str = ".4f") -> str:
        """``1.2345 ± 0.0067``; of a single value the mean alone. ``form`` is a format of numbers."""
        return with_margin(self.mean, self.margin, form)


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """A mean difference over pairs."""

    p: float | None
    """How often chance alone would give a difference at least this large, in either direction; None for one pair."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.p is not None and self.p < 1.0 - self.level


def with_margin(mean: float, margin: float | None, form: str) -> str:
    """``1.2345 ± 0.0067``, or the mean alone."""
    return format(mean, form) + ("" if margin is None else f" ± {format(margin, form.lstrip('+'))}")


def estimate(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean, standard error and Student's confidence interval of independent repetitions.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    values = _checked(values)
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean=mean, n=1, standard_error=None, margin=None, level=level)
    error = statistics.stdev(values) / math.sqrt(n)
    return Estimate(
        mean=mean,
        n=n,
        standard_error=error,
        margin=student_t_critical(level, n - 1) * error,
        level=level,
    )


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95) -> Difference:
    """Mean of ``values[i] - baseline[i]`` with its interval and the two-sided p-value of the paired t-test.

    What two runs of one seed share (the order of the data, the draw of the weights) cancels in each pair, so fewer
    seeds show the same effect than two separate means would need (Student 1908).

    Raises:
        ValueError: unequal lengths, no pair, or a value that is not finite.
    """
    pairs = list(zip(_checked(values), _checked(baseline), strict=True))
    found = estimate([value - base for value, base in pairs], level=level)
    if found.standard_error is None:
        p = None
    elif found.standard_error == 0.0:  # all differences are the same
        p = 1.0 if found.mean == 0.0 else 0.0
    else:
        p = 1.0 - student_t_within(abs(found.mean) / found.standard_error, found.n - 1)
    return Difference(
        mean=found.mean, n=found.n, standard_error=found.standard_error, margin=found.margin, level=level, p=p
    )


def bootstrap(values_RT: np.ndarray, *, block: int = _BLOCK, draws: int = _DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean, by drawing blocks of neighbours with replacement (Kuensch 1989)."""
    T = values_RT.shape[1]
    pieces = max(1, T // block)
    means = np.array([part.mean() for row in values_RT for part in np.array_split(row, pieces)])
    picked = generator(seed, "bootstrap").integers(0, len(means), (draws, len(means)))
    low, high = np.quantile(means[picked].mean(1), [0.025, 0.975])
    return float(low), float(high)


def slope(added_RT: np.ndarray) -> tuple[float, float | None]:
    """Least squares over positions 0 to 1 for each piece; the mean of the slopes and half of its interval, if there are
    several."""
    x = np.linspace(-0.5, 0.5, added_RT.shape[1])
    found = estimate((added_RT @ x / (x @ x)).tolist())
    return found.mean, found.margin


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each point whether no other is as low in both and lower in one (the Pareto front)."""
    return [not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points) for p in points]


def student_t_within(t: float, dof: int) -> float:
    """P(-t <= T <= t) of Student's distribution with ``dof`` degrees of freedom, to about 1e-15.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if dof < 1 or t < 0:
        raise ValueError(f"Student's t needs dof >= 1 and t >= 0, not {dof} and {t}")
    return _within(math.atan(t / math.sqrt(dof)), dof)


@lru_cache(maxsize=1024)
def student_t_critical(level: float, dof: int) -> float:
    """The t with P(-t <= T <= t) = ``level``: the standard errors that an interval reaches to each side."""
    if not 0.0 < level < 1.0 or dof < 1:
        raise ValueError(f"an interval needs 0 < level < 1 and dof >= 1, not {level} and {dof}")
    low, high = 0.0, math.pi / 2  # t runs to infinity, its angle does not: bisection always ends
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, dof) < level else (low, middle)
    return math.sqrt(dof) * math.tan(low)


def _within(angle: float, dof: int) -> float:
    """The finite sums, in the angle whose tangent is t / sqrt(dof)."""
    cosine2 = math.cos(angle) ** 2
    odd = dof % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, dof + 1, 2):  # each term is (k - 1) / k cos^2 of the one before
        total += term
        term *= (k - 1) / k * cosine2
    inside = math.sin(angle) * total
    return 2.0 / math.pi * (angle + inside) if odd else inside


def _checked(values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("statistics need at least one value")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"statistics need finite values, not {numbers}: leave failed runs out")
    return numbers

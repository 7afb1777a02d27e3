"""Which weight gets how much of a budget: the plan of a compression.

What a weight loses is predicted from two measurements: the error of its output as a function of its size (see
``candidates.py``), and what an error costs, its slope: the loss that the model gains when this weight alone is
replaced, over the error. A slope is measured for each kind of structure: equal errors of unequal kinds do not cost the
same (docs/LOG.md). Costs of different weights are taken to add up.

Allocation is over discrete sizes. On the lower convex hull of every weight's curve, the steps that lower the predicted
loss most for each value are taken first, as long as there is room (the Lagrangian relaxation, which greed solves
exactly); what is left over goes to whatever single change gains most.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bonsaigpt.compress.candidates import Candidate, Curve
from bonsaigpt.compress.narrow import NarrowCandidate

__all__ = ["Option", "Price", "allocate", "evenly", "hull", "options", "smallest_within"]


@dataclass(frozen=True)
class Option:
    """A candidate with its price."""

    candidate: Candidate | NarrowCandidate
    loss: float
    """Nats a token that the model is predicted to lose by it, before healing."""

    @property
    def stored(self) -> int:
        """Values."""
        return self.candidate.stored


@dataclass(frozen=True)
class Price:
    """What was measured of one weight as one kind of structure."""

    curve: Curve
    tried: Candidate
    slope: float
    """Nats for an error of one (all of the output's power), from the fit that was tried; never below zero."""


def options(prices: Sequence[Price], dense: Candidate) -> list[Option]:
    """All that a weight may become, the dense matrix included, by stored values."""
    found = [Option(dense, 0.0), *(Option(c, p.slope * c.error) for p in prices for c in p.curve)]
    return sorted(found, key=lambda option: (option.stored, option.loss))


def hull(choices: Sequence[Option]) -> list[Option]:
    """The lower convex hull of loss over stored values: losses fall along it, and ever more slowly."""
    kept: list[Option] = []
    for option in sorted(choices, key=lambda option: (option.stored, option.loss)):
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _gain(kept[-2], option) >= _gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def allocate(weights: Sequence[Sequence[Option]], budget: int) -> list[Option] | None:
    """One option for each weight, of at most ``budget`` values together and of least predicted loss; None if even the
    smallest are more."""
    chosen = _grown(weights, lambda chosen, step: _stored(chosen) + step <= budget)
    if _stored(chosen) > budget:
        return None
    while True:
        room = budget - _stored(chosen)
        better = [
            (now.loss - option.loss, number, option)
            for number, (choices, now) in enumerate(zip(weights, chosen, strict=True))
            for option in choices
            if option.loss < now.loss and option.stored - now.stored <= room
        ]
        if not better:
            return chosen
        _, number, option = max(better, key=lambda found: found[:2])
        chosen[number] = option


def evenly(weights: Sequence[Sequence[Option]], share: float) -> list[Option] | None:
    """For each weight the option of least predicted loss that stores at most this share of its largest; None if one has
    none."""
    chosen: list[Option] = []
    for choices in weights:
        most = share * max(option.stored for option in choices)
        within = [option for option in choices if option.stored <= most]
        if not within:
            return None
        chosen.append(min(within, key=lambda option: option.loss))
    return chosen


def smallest_within(weights: Sequence[Sequence[Option]], loss: float) -> list[Option]:
    """Options of few values whose predicted losses add up to at most ``loss``."""
    return _grown(weights, lambda chosen, step: sum(option.loss for option in chosen) > loss)


def _grown(weights: Sequence[Sequence[Option]], may: Callable[[list[Option], int], bool]) -> list[Option]:
    """From the smallest of each weight along the hulls, the steepest step first, as long as ``may(chosen, values)``."""
    hulls = [hull(choices) for choices in weights]
    chosen = [steps[0] for steps in hulls]
    heap = [(-_gain(steps[0], steps[1]), number, 1) for number, steps in enumerate(hulls) if len(steps) > 1]
    heapq.heapify(heap)
    while heap:
        _, number, place = heapq.heappop(heap)
        option = hulls[number][place]
        if not may(chosen, option.stored - chosen[number].stored):
            continue  # and none of the later ones of this weight, which would leave a step out
        chosen[number] = option
        if place + 1 < len(hulls[number]):
            heapq.heappush(heap, (-_gain(option, hulls[number][place + 1]), number, place + 1))
    return chosen


def _stored(chosen: Sequence[Option]) -> int:
    return sum(option.stored for option in chosen)


def _gain(small: Option, large: Option) -> float:
    """Nats for each value more."""
    return (small.loss - large.loss) / max(1, large.stored - small.stored)

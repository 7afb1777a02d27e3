"""The learning-rate range test: one short run in which the rate rises until the loss runs away.

Smith 2017, "Cyclical learning rates for training neural networks" (arXiv:1506.01186), section 3.3. There the rate rises
along a straight line; here it rises exponentially, so that every decade gets as many steps. It costs a fraction of a
training and tells the order of magnitude: which rates do nothing, and from where on they do harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine

__all__ = ["RangeTest", "range_test"]

LOWEST, HIGHEST = 1e-3, 1e2
"""Multiples of the recipe's rates at the first and the last step."""
_MEMORY = 0.9
"""Of the smoothed loss. It lags by 1 / (1 - memory) = 10 steps; the usual 0.98 lags by 50, which in a test of 200 steps
over five decades would be more than one decade."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The curve, up to where it ran away, and what is read off it."""

    steps: int
    """That were planned; fewer were taken if the loss ran away."""
    multiples: tuple[float, ...]
    """Of the recipe's rates, one for each step that was taken."""
    losses: tuple[float, ...]
    """Training loss of each step, nats a token, before the step changed the weights."""
    smoothed: tuple[float, ...]
    ran_away: bool

    @property
    def largest(self) -> float:
        """The largest usable multiple: beyond it the smoothed loss rises."""
        return self.multiples[int(np.argmin(self.smoothed))]

    @property
    def steepest(self) -> float:
        """The multiple at which the smoothed loss falls fastest for a given factor of the rate."""
        end = int(np.argmin(self.smoothed))
        if end == 0:
            return self.multiples[0]
        return self.multiples[int(np.argmin(np.diff(self.smoothed[: end + 1]))) + 1]


def range_test(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    steps: int,
    advance: Callable[[str, int, int], None],
) -> RangeTest:
    """Train scratch weights for at most ``steps`` steps, at multiples of all peak rates from 0.001 to 100.

    Args:
        config: resolved; its schedule is not used.
        advance: told what is done, how much of it and how much in all.
    """
    config = derive(config, train={"guard": {"spike": 0.0}})  # what stands out is to be seen, not to be skipped
    state = engine.init(config)
    multiples = np.geomspace(LOWEST, HIGHEST, steps).tolist()
    losses: list[float] = []
    smoothed: list[float] = []
    for step, multiple in enumerate(multiples):
        advance("range test", step, steps)
        metrics = engine.step(state, source.batch_at(step), config=config, share=multiple, step=step)
        loss = metrics.host()["loss"]
        if not math.isfinite(loss):
            break
        losses.append(loss)
        smoothed.append(smooth(losses))
        if runs_away(smoothed):
            break
    taken = len(losses)
    return RangeTest(
        steps=steps,
        multiples=tuple(multiples[:taken]),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        ran_away=taken < steps,
    )


def smooth(losses: list[float]) -> float:
    """The exponential average at the last of them, without the bias towards zero of its beginning."""
    weights = _MEMORY ** np.arange(len(losses))[::-1]
    return float(np.dot(weights, losses) / weights.sum())


def runs_away(smoothed: list[float]) -> bool:
    """Whether more than half of what had been learned is lost again. A multiple of the lowest loss, the usual rule,
    would never be reached: a language model that has lost everything is at the logarithm of its vocabulary."""
    first, lowest, last = smoothed[0], min(smoothed), smoothed[-1]
    return last > lowest + 0.5 * (first - lowest) + 0.05 * first

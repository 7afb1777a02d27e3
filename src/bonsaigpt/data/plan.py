"""How many sequences, and of which length, each step takes: the ramps of batch and context.

Everything follows from the step number, so a resumed run and any number of processes agree on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bonsaigpt.config import LinearRamp, NoRamp, Ramp, RunConfig

__all__ = ["BatchPlan", "ramp_size"]

NO_RAMP = NoRamp()


def ramp_size(ramp: Ramp, full: int, step: int) -> int:
    """The size at ``step`` (the first is 0) of a ramp that ends at ``full``."""
    if isinstance(ramp, NoRamp):
        return full
    if isinstance(ramp, LinearRamp):
        return full if step >= ramp.steps else ramp.start + (full - ramp.start) * step // ramp.steps
    for size, until in zip(ramp.sizes, ramp.until, strict=True):
        if step < until:
            return size
    return full


@dataclass(frozen=True)
class BatchPlan:
    """Sizes and sample numbers of every step."""

    batch_size: int
    block_size: int
    batch_ramp: Ramp = NO_RAMP
    context_ramp: Ramp = NO_RAMP

    @classmethod
    def of(cls, config: RunConfig) -> BatchPlan:
        """The plan of a run."""
        train = config.train
        return cls(train.batch_size, config.model.block_size, train.batch_ramp, train.context_ramp)

    def rows(self, step: int) -> int:
        """Windows of ``block_size`` that the step takes."""
        return ramp_size(self.batch_ramp, self.batch_size, step)

    def context(self, step: int) -> int:
        """Length of the rows into which the step's windows are cut: a divisor of ``block_size``."""
        most = min(self.block_size, ramp_size(self.context_ramp, self.block_size, step))
        return next(length for length in range(most, 0, -1) if self.block_size % length == 0)

    def samples(self, step: int) -> np.ndarray:
        """Global numbers of the windows of a step, (rows,) int64: no number is left out and none comes twice."""
        ramp = self._ramp_starts
        end = len(ramp) - 1
        start = int(ramp[step]) if step < end else int(ramp[end]) + (step - end) * self.batch_size
        return np.arange(start, start + self.rows(step))

    @cached_property
    def _ramp_starts(self) -> np.ndarray:
        """The first sample of each step of the ramp, and of the step after it."""
        ramp = self.batch_ramp
        steps = 0 if isinstance(ramp, NoRamp) else ramp.steps if isinstance(ramp, LinearRamp) else ramp.until[-1]
        return np.concatenate([[0], np.cumsum([self.rows(step) for step in range(steps)], dtype=np.int64)]).astype(
            np.int64
        )

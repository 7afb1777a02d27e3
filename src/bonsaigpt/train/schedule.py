"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from bonsaigpt.config import CosineSchedule, RunConfig

__all__ = ["learning_rate"]


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0): linear warmup, then the schedule's shape."""
    schedule, peak = config.optim.schedule, config.optim.lr
    if step < schedule.warmup:
        return peak * (step + 1) / (schedule.warmup + 1)
    if not isinstance(schedule, CosineSchedule):
        return peak
    decay_steps = max(1, config.train.steps - schedule.warmup)
    progress = min(1.0, (step - schedule.warmup) / decay_steps)
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (schedule.final + (1.0 - schedule.final) * share)

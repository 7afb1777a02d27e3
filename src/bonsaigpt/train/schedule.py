"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from bonsaigpt.config import ConstantSchedule, CosineSchedule, LinearSchedule, RunConfig

__all__ = ["learning_rate", "schedule_share"]


def learning_rate(config: RunConfig, step: int) -> float:
    """AdamW's learning rate at a step."""
    return config.optim.lr * schedule_share(config, step)


def schedule_share(config: RunConfig, step: int) -> float:
    """Share of the peak learning rates at optimizer step ``step`` (the first is 0): linear warmup, then the shape."""
    schedule, steps = config.optim.schedule, config.train.steps
    if step < schedule.warmup:
        return (step + 1) / (schedule.warmup + 1)
    if isinstance(schedule, ConstantSchedule):
        return 1.0
    start = schedule.warmup
    if not isinstance(schedule, CosineSchedule | LinearSchedule):  # the trapezoid is flat until its cooldown
        start = max(start, steps - round(schedule.cooldown * steps))
    progress = min(1.0, max(0, step - start) / max(1, steps - start))
    if isinstance(schedule, CosineSchedule):
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif isinstance(schedule, LinearSchedule) or schedule.shape == "linear":
        shape = 1.0 - progress
    else:
        shape = 1.0 - math.sqrt(progress)
    return schedule.final + (1.0 - schedule.final) * shape

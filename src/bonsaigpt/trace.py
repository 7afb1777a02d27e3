"""What a profiler saw of some steps, or a count foresaw, in plain values that no engine is needed to read.

A span is one thing that ran from one moment to another on one lane: a thread, or a device. Spans of a lane nest or
follow each other. An engine records them (``torch_engine/profiling.py``); ``measure/anatomy.py`` adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

__all__ = ["MARKS", "STEP", "Look", "Observed", "Room", "Span", "StepMemory", "Trace"]

Observed: TypeAlias = dict[str, dict[str, np.ndarray]]
"""All that a step from a saved state computes, by names that engines share, level by level: ``weights`` (with the
optimizer's state, as they were loaded), ``activations``, ``logits``, ``loss`` (a target's mean), ``gradients``, and
``step`` (weights and state after it)."""

STEP = "step"
"""The mark around a whole step."""

MARKS = (STEP, "data", "forward", "backward", "clip", "optimizer")
"""The parts of a step that its code names, in the order in which they come."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a step is asked to tell of its health; see ``measure/health.py``."""

    tokens: int
    """Of the batch, whose activations are looked at: whole rows, and at least one."""
    off: float
    """A hidden unit is active where its activation function gets more than this."""
    far: float
    """Above this the activation function is as good as straight."""


@dataclass(frozen=True, slots=True)
class Span:
    """One operator, kernel or mark. Times are in ns of one clock."""

    name: str
    start: int
    end: int
    lane: str
    """``thread 1``, ``cuda:0``."""
    device: bool = False
    """Whether the lane is an accelerator and not a thread."""
    mark: bool = False
    """Whether it is one of ``MARKS``: a part of the step that its code named, and no work by itself."""
    cause: int | None = None
    """Number of the span that this one is due to, in another place: a kernel's launching operator, or the forward
    operator whose gradient a node of the backward pass computes."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of the operator's tensor arguments, where they were recorded."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Some steps, each inside a mark ``step``."""

    spans: tuple[Span, ...]
    memory: tuple[tuple[int, int], ...] = ()
    """(ns, bytes that are held from then on) of the device that the model is on, the first from time 0; empty if it was
    not asked for."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What a step will hold on its device, in bytes."""

    parts: dict[str, int]
    """At its fullest moment, by what it was made for, over all workers: weights, gradients, activations, ..."""
    state: int
    """Of the optimizer between steps: moments, momentum, an average of the weights; not cut into shards."""

    @property
    def total(self) -> int:
        """At its fullest moment."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Room:
    """Memory of a device for tensors, in bytes."""

    free: int
    total: int
    """Swap included: what asks for more is refused for certain."""

    @property
    def usable(self) -> int:
        """What of the free memory a step may take by a count of its tensors: the rest is for what kernels take for
        themselves, and for what an allocator cannot use."""
        return int(0.9 * self.free)

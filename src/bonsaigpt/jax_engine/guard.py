"""Whether a step's gradient may be used, decided inside the compiled step; see ``torch_engine/guard.py``."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from bonsaigpt.config import GuardConfig

__all__ = ["fresh", "judge"]

_WARMUP = 50
"""Steps that are looked at before any is called a spike."""
_RATE = 0.02
"""Weight of the newest step in the running mean and variance."""


def fresh() -> Array:
    """Mean and variance of the logarithm of the gradient norm, steps seen, the loss scale, quiet steps under it (both
    are fp16's, which this engine has not), skipped steps, and skipped steps in a row: (7,) float32."""
    return jnp.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], jnp.float32)


def judge(config: GuardConfig, guard: Array, norm: Array, loss: Array) -> tuple[Array, Array]:
    """True if the step may be taken, and the guard after it. ``norm`` is of the gradient before clipping."""
    mean, variance, seen, scale, quiet, skipped, in_a_row = guard
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    size = jnp.log(jnp.maximum(norm, 1e-30))
    if config.spike:
        limit = mean + jnp.maximum(config.spike * jnp.sqrt(variance), math.log(10.0))
        good &= (size <= limit) | (seen < _WARMUP)
    is_shut = in_a_row >= config.max_skips
    counts = ~(good | is_shut)
    good &= ~is_shut
    rate = good / jnp.minimum(seen + 1, 1 / _RATE)
    delta = jnp.where(good, size - mean, 0.0)
    mean = mean + rate * delta
    variance = variance + rate * (delta**2 - variance)
    in_a_row = jnp.where(good, 0.0, in_a_row + counts)
    return good, jnp.stack([mean, variance, seen + good, scale, quiet, skipped + ~good, in_a_row]).astype(guard.dtype)

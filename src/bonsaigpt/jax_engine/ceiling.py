"""How fast this device multiplies, copies and reads in XLA, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bonsaigpt.jax_engine.device import Placement

__all__ = ["copy_rate", "product_rate", "read_rate"]

_LARGE = 2**26
"""Elements of an array that no cache holds."""


def product_rate(placement: Placement, shape: tuple[int, int, int] | None = None, *, seconds: float) -> float:
    """Operations a second of a product (m, k) times (k, n); without a shape, of a large square one."""
    m, k, n = shape or ((8192,) * 3 if placement.is_gpu else (1024,) * 3)
    a, b = (_ones(placement, sides, placement.dtype) for sides in ((m, k), (k, n)))
    return 2.0 * m * k * n * _calls_per_second(jax.jit(jnp.matmul), a, b, seconds=seconds)


def copy_rate(placement: Placement, *, seconds: float) -> float:
    """Bytes a second that are read and written while memory is copied."""
    x = _ones(placement, (_LARGE,), jnp.float32)
    return 2.0 * x.nbytes * _calls_per_second(jax.jit(lambda x: x + 1.0), x, seconds=seconds)


def read_rate(placement: Placement, *, seconds: float) -> float:
    """Bytes a second that are read from memory."""
    x = _ones(placement, (_LARGE,), jnp.float32)
    return x.nbytes * _calls_per_second(jax.jit(jnp.max), x, seconds=seconds)


def _ones(placement: Placement, shape: tuple[int, ...], dtype: type) -> jax.Array:
    return jax.device_put(jnp.ones(shape, dtype), placement.device)


def _calls_per_second(call: Callable[..., jax.Array], *arguments: jax.Array, seconds: float) -> float:
    """Of the best of some tries, the first of which compiles."""
    call(*arguments).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        began = time.perf_counter()
        call(*arguments).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 1.0 / best

"""Key/value caches in buffers of fixed size, as trees: what a pass changes it gives back.

The slot of a token is its position. Padding behind the tokens of a pass is written as well, into slots that nobody sees
before they are written again; a row that has no part in a pass writes into one slot more than there are positions.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from bonsaigpt.config import ModelConfig
from bonsaigpt.jax_engine.attention import Kept
from bonsaigpt.kv import state_shape

__all__ = ["Cache", "bits", "copied_row", "empty", "put_row", "row_of"]

Cache: TypeAlias = tuple[Kept | None, ...]
"""For each layer keys and values (B, G, slots, K), the state of linear attention (B, H, K, W), or None where the layer
reads another's keys and values."""


def empty(config: ModelConfig, *, rows: int, dtype: Any) -> Cache:
    """Zeros: what is masked is still multiplied, by 0."""
    if config.attention.kind == "linear":  # sums of many terms, so always float32
        return tuple((jnp.zeros((rows, *state_shape(config)), jnp.float32),) for _ in range(config.n_layer))
    heads, key, value = config.kv_widths
    made: list[Kept | None] = [None] * config.n_layer
    for layer in config.kv_layers:
        made[layer] = tuple(jnp.zeros((rows, heads, config.block_size + 1, width), dtype) for width in (key, value))
    return tuple(made)


def row_of(cache: Cache, row: Array) -> Cache:
    """One row, as a cache of one."""
    return jax.tree.map(lambda buffer: lax.dynamic_slice_in_dim(buffer, row, 1), cache)


def put_row(cache: Cache, row: Array, one: Cache) -> Cache:
    """The cache with a row changed."""
    return jax.tree.map(lambda buffer, new: lax.dynamic_update_slice_in_dim(buffer, new, row, axis=0), cache, one)


def copied_row(config: ModelConfig, cache: Cache, source: Array, target: Array) -> Cache:
    """The cache with a row's past in another row."""
    return put_row(cache, target, row_of(cache, source))


def bits(cache: Cache) -> int:
    """Of all buffers."""
    return sum(8 * math.prod(buffer.shape) * buffer.dtype.itemsize for buffer in jax.tree.leaves(cache))

"""Linear attention (Katharopoulos et al. 2020): weights that are dot products, so the past is a matrix.

The result at t is q_t . (sum over s <= t of k_s v_s^T), summed within chunks by all weights and between them by the
matrix, as in ``torch_engine/linear_attention.py``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bonsaigpt.config import LinearAttention, ModelConfig
from bonsaigpt.jax_engine.attention import Kept, Where
from bonsaigpt.jax_engine.linear import apply, layer_norm
from bonsaigpt.jax_engine.rope import rotate

__all__ = ["chunked", "linear_attention", "parallel"]

CHUNK = 64
"""Tokens of a chunk: of about the width of a head the two parts of the work are alike."""
_TINY = 1e-6
"""Added to the sum of the weights, which are above 0."""


def parallel(q_BTHK: Array, k_BTHK: Array, v_BTHV: Array, mask_BTT: Array) -> Array:
    """The sums for every query, (B, T, H, V), by all T^2 weights; ``mask``: True where a query may look."""
    weights_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK)
    return jnp.einsum("bhts,bshv->bthv", jnp.where(mask_BTT[:, None], weights_BHTS, 0.0), v_BTHV)


def chunked(
    q_BTHK: Array, k_BTHK: Array, v_BTHV: Array, state_BHKV: Array | None = None, *, chunk: int = CHUNK
) -> tuple[Array, Array]:
    """The same chunk by chunk, and the state after the last token; no state is the empty past."""
    B, T = q_BTHK.shape[:2]
    chunk = min(chunk, T)
    padding = [(0, 0), (0, -T % chunk), (0, 0), (0, 0)]
    q, k, v = (jnp.pad(t, padding).reshape(B, -1, chunk, *t.shape[2:]) for t in (q_BTHK, k_BTHK, v_BTHV))
    weights = jnp.where(jnp.tri(chunk, dtype=bool), jnp.einsum("bnthk,bnshk->bnhts", q, k), 0.0)
    steps_BNHKV = jnp.einsum("bnthk,bnthv->bnhkv", k, v)
    after_BNHKV = jnp.cumsum(steps_BNHKV, axis=1)
    if state_BHKV is not None:
        after_BNHKV = after_BNHKV + state_BHKV[:, None]
    before_BNHKV = after_BNHKV - steps_BNHKV
    y = jnp.einsum("bnhts,bnshv->bnthv", weights, v) + jnp.einsum("bnthk,bnhkv->bnthv", q, before_BNHKV)
    return y.reshape(B, -1, *y.shape[3:])[:, :T], after_BNHKV[:, -1]


def linear_attention(
    config: ModelConfig, params: dict[str, Any], x_BTD: Array, where: Where, *, kept: Kept | None = None
) -> tuple[Array, Kept | None]:
    """What the layer adds, and its state from now on; ``c_attn`` makes queries, keys and values, in that order.

    Under RoPE queries and keys turn after the feature map, in the sums alone and not in what they are divided by (Su et
    al. 2021, equation 19): turned, the weights might cancel.
    """
    assert isinstance(config.attention, LinearAttention)
    B, T, _ = x_BTD.shape
    heads_BTHK = apply(params["c_attn"], x_BTD).reshape(B, T, 3 * config.n_head, config.head_width)
    q, k, v = jnp.split(heads_BTHK, 3, axis=2)
    divides = config.attention.form == "elu"
    if divides:
        q, k = jax.nn.elu(q) + 1.0, jax.nn.elu(k) + 1.0
    if where.real_BT is not None:  # padding leaves no trace in the state
        k = jnp.where(where.real_BT[:, :, None, None], k, 0.0)
    turned_q, turned_k = q, k
    if where.rotation is not None:
        assert config.position.kind == "rope"
        pairs = config.position.pairs == "neighbours"
        turned_q, turned_k = (rotate(t, *where.rotation, neighbours=pairs) for t in (q, k))

    def sums(q: Array, k: Array, v: Array, state: Array | None) -> tuple[Array, Array]:
        if where.start_B is None and (mask := where.masks[None]) is not None:
            return parallel(q, k, v, mask), jnp.zeros(0)  # of several documents there is no one state
        return chunked(q, k, v, state)

    state = (None, None) if kept is None else jnp.split(kept[0], [config.head_width], axis=-1)
    y, after = sums(turned_q, turned_k, v, state[0])
    if divides:
        total, after_total = sums(q, k, jnp.ones_like(v[..., :1]), state[1])
        y = y / (total + _TINY)
        after = jnp.concatenate((after, after_total), axis=-1)
    else:
        y = layer_norm(y, eps=config.norm.eps)
    return apply(params["c_proj"], y.reshape(B, T, -1)), None if kept is None else (after,)

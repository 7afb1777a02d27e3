"""Causal self-attention with grouped queries, QK-norm, rotary positions, windows, shared keys and values, and learned
sinks; masks are computed from positions.

Heads come before the time, as in PyTorch: XLA's products on a CPU want the axes that they do not sum over in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from bonsaigpt.config import ModelConfig, SoftmaxAttention
from bonsaigpt.jax_engine.linear import apply, dropout, rms_norm
from bonsaigpt.jax_engine.rope import rotate

__all__ = ["Kept", "Seen", "Where", "attend", "attention", "causal_mask", "document_mask", "masks", "write"]

_WIDEST = 128
"""Head width that cuDNN's flash attention takes on every GPU that has it."""

Seen: TypeAlias = tuple[Array, Array]
"""Keys and values (B, G, S, K) that a layer looked at, for the layers that share them."""
Kept: TypeAlias = tuple[Array, ...]
"""What a layer keeps of all tokens: keys and values (B, G, slots, K), or linear attention's state; see cache.py."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the tokens of this pass stand; lives while a function is traced."""

    masks: Mapping[int | None, Array | None]
    """For each window of the model where a query may look, (B or 1, T, S); None means at every earlier position."""
    rotation: tuple[Array, Array] | None = None
    """cos and sin for these positions, (B or 1, T, 1, K/2), where the model uses RoPE."""
    start_B: Array | None = None
    """With a cache, the slot of the first token of each row, which is its position."""
    real_BT: Array | None = None
    """With a cache, which tokens are no padding."""
    seen: int = 0
    """With a cache, how many of its slots are looked at: a bound on all positions of this pass."""
    fused: bool = False
    """Attend by cuDNN's kernel where it can do it."""


def causal_mask(positions_BT: Array, slots: int, window: int | None = None) -> Array:
    """True where a query may look, (B, T, S): at slots of positions up to its own, fewer than ``window`` back."""
    keys, queries = jnp.arange(slots), positions_BT[:, :, None]
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def document_mask(documents_BT: Array) -> Array:
    """True where a query may look, (B, T, T): at its own or an earlier position of its own document."""
    T = documents_BT.shape[1]
    return (documents_BT[:, :, None] == documents_BT[:, None, :]) & jnp.tri(T, dtype=bool)


def masks(config: ModelConfig, T: int, mask_BTT: Array | None) -> dict[int | None, Array | None]:
    """For each window of the model the mask of a pass over whole rows, given that without a window."""
    found: dict[int | None, Array | None] = {None: mask_BTT}
    if isinstance(config.attention, SoftmaxAttention):
        for window in {config.attention.window_of(layer) for layer in range(config.n_layer)}:
            found[window] = mask_BTT
            if window is not None and window < T:  # a wider one hides nothing
                band_1TT = causal_mask(jnp.arange(T)[None], T, window)
                found[window] = band_1TT if mask_BTT is None else mask_BTT & band_1TT
    return found


def attend(
    q_BHTK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask_BTS: Array | None,
    *,
    rate: float = 0.0,
    key: Array | None = None,
    sinks_H: Array | None = None,
    fused: bool = False,
) -> Array:
    """softmax(q k^T / sqrt(K)) v, (B, H, T, K). Without a mask the pass is causal over equal positions.

    Args:
        rate: of dropout on the shares, where there is a ``key``.
        sinks_H: for each head a score that takes part in the softmax and has no value.
        fused: by cuDNN where it is possible: bf16, heads of a width that it takes, no mask, no sinks, no dropout.
    """
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    is_plain = mask_BTS is None and sinks_H is None and (key is None or rate == 0.0)
    if fused and is_plain and q_BHTK.dtype == jnp.bfloat16 and K % 8 == 0 and K <= _WIDEST:
        q, k, v = (t.swapaxes(1, 2) for t in (q_BHTK, k_BGSK, v_BGSK))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").swapaxes(1, 2)
    wide = jnp.promote_types(q_BHTK.dtype, jnp.float32)  # of the softmax
    q_BGNK = (q_BHTK * K**-0.5).reshape(B, G, -1, K)  # N: the queries of all heads that share a key
    scores_BHTS = jnp.matmul(q_BGNK, k_BGSK.mT, preferred_element_type=wide).reshape(B, H, T, S)
    mask_BTS = jnp.tri(T, S, dtype=bool)[None] if mask_BTS is None else mask_BTS
    scores_BHTS = jnp.where(mask_BTS[:, None], scores_BHTS, -jnp.inf)
    if sinks_H is None:
        shares_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
    else:
        sinks_H11 = sinks_H.astype(wide)[:, None, None]
        most = lax.stop_gradient(jnp.maximum(scores_BHTS.max(axis=-1, keepdims=True), sinks_H11))
        raised = jnp.exp(scores_BHTS - most)
        shares_BHTS = raised / (raised.sum(axis=-1, keepdims=True) + jnp.exp(sinks_H11 - most))
    shares_BHTS = dropout(shares_BHTS, rate, key).astype(v_BGSK.dtype)
    return (shares_BHTS.reshape(B, G, -1, S) @ v_BGSK).reshape(B, H, T, K)


def write(kept_BGSK: Array, new_BGTK: Array, start_B: Array) -> Array:
    """The buffer with new entries from a slot of its own in each row on."""
    new_BGTK = new_BGTK.astype(kept_BGSK.dtype)
    if len(kept_BGSK) == 1:
        return lax.dynamic_update_slice_in_dim(kept_BGSK, new_BGTK, start_B[0], axis=2)
    return jax.vmap(lambda row, part, start: lax.dynamic_update_slice_in_dim(row, part, start, axis=1))(
        kept_BGSK, new_BGTK, start_B
    )


def attention(
    config: ModelConfig,
    layer: int,
    params: dict[str, Any],
    x_BTD: Array,
    where: Where,
    *,
    kept: Kept | None = None,
    shared: Seen | None = None,
    key: Array | None = None,
) -> tuple[Array, Kept | None, Seen]:
    """What the layer adds, what it keeps from now on, and the keys and values that it looked at.

    ``c_attn`` makes queries, keys and values in one product, in that order; of a layer that reads another's keys and
    values queries alone.
    """
    setting = config.attention
    assert isinstance(setting, SoftmaxAttention)
    B, T, _ = x_BTD.shape
    H, G, K = config.n_head, config.n_kv_head, config.head_width
    has_own = config.kv_source(layer) == layer
    heads_BTHK = apply(params["c_attn"], x_BTD).reshape(B, T, -1, K)
    qk_BTHK, v_BTGK = jnp.split(heads_BTHK, [H + G], axis=2) if has_own else (heads_BTHK, None)
    if setting.qk_norm:
        factors = None
        if setting.qk_norm == "scaled":
            factors = jnp.broadcast_to(params["q_norm"], (H, K))
            if has_own:
                factors = jnp.concatenate((factors, jnp.broadcast_to(params["k_norm"], (G, K))))
        qk_BTHK = rms_norm(qk_BTHK, factors, eps=config.norm.eps).astype(qk_BTHK.dtype)
    if where.rotation is not None:
        assert config.position.kind == "rope"
        qk_BTHK = rotate(qk_BTHK, *where.rotation, neighbours=config.position.pairs == "neighbours")
    q_BHTK, k_BGTK = jnp.split(qk_BTHK.swapaxes(1, 2), [H], axis=1)
    if v_BTGK is None:
        assert shared is not None
        seen = shared
    else:
        seen = k_BGTK, v_BTGK.swapaxes(1, 2)
        if where.start_B is not None:
            assert kept is not None
            kept = write(kept[0], seen[0], where.start_B), write(kept[1], seen[1], where.start_B)
            seen = kept[0][:, :, : where.seen], kept[1][:, :, : where.seen]
    y_BHTK = attend(
        q_BHTK,
        *seen,
        where.masks[setting.window_of(layer)],
        rate=config.dropout,
        key=key,
        sinks_H=params.get("sinks"),
        fused=where.fused,
    )
    return apply(params["c_proj"], y_BHTK.swapaxes(1, 2).reshape(B, T, -1)), kept, seen

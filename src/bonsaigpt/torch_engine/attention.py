"""Causal self-attention with grouped queries, QK-norm, rotary positions, windows, shared keys and values, and learned
sinks; the mask is computed from positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import ModelConfig, SoftmaxAttention
from bonsaigpt.kv import AttendingCache, KVCache
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.elementwise import rms_norm, rotate
from bonsaigpt.torch_engine.linear import Linear

__all__ = [
    "Attention",
    "Seen",
    "Where",
    "attend",
    "causal_mask",
    "document_mask",
    "masks",
    "scores",
    "shares",
    "windows",
]


@dataclass(frozen=True)
class Seen:
    """Keys and values that a layer looked at, for the layers that share them."""

    k_BGSK: Tensor
    v_BGSK: Tensor
    slots_BS: Tensor | None
    """True positions of the slots; None without a cache."""
    held: tuple[Tensor, Tensor] | None = None
    """What later tokens will be given instead of them, twice (B, G, S, K); None means the same."""


@dataclass(frozen=True)
class Where:
    """Where the tokens of this pass stand."""

    positions_BT: Tensor | None
    """True positions; None means 0 .. T-1 in every row, the case of training."""
    rotation: tuple[Tensor, Tensor] | None
    """cos and sin for these positions, (T, 1, K/2) or (B, T, 1, K/2), where the model uses RoPE."""
    cache: KVCache | AttendingCache | None
    masks: Mapping[int | None, Tensor | None] = field(default_factory=lambda: {None: None})
    """Where a query of a layer with that window may look, (B or 1, 1, T, T); None means at every earlier position. With
    a cache it follows from the positions of its slots."""
    before: Callable[[int, Tensor], Tensor] | None = None
    """Puts the remembered inputs of a layer in front of the new ones; positions and rotation are of both then."""
    loads: list[Tensor] | None = None
    """Takes of each layer of experts how unevenly each row's tokens are spread over them, (B,)."""


def causal_mask(query_positions_BT: Tensor, key_positions_BS: Tensor, window: int | None = None) -> Tensor:
    """True where a query may look, (B, 1, T, S): at filled slots of its own or an earlier position, fewer than
    ``window`` positions back."""
    keys, queries = key_positions_BS[:, None, None, :], query_positions_BT[:, None, :, None]
    seen = (keys >= 0) & (keys <= queries)
    return seen if window is None else seen & (keys > queries - window)


def document_mask(documents_BT: Tensor) -> Tensor:
    """True where a query may look, (B, 1, T, T): at its own or an earlier position of its own document."""
    T = documents_BT.shape[1]
    earlier_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]) & earlier_TT


def windows(config: ModelConfig) -> set[int | None]:
    """The windows of all layers."""
    attention = config.attention
    if not isinstance(attention, SoftmaxAttention):
        return {None}
    return {attention.window_of(layer) for layer in range(config.n_layer)}


def masks(config: ModelConfig, T: int, mask: Tensor | None, device: torch.device) -> dict[int | None, Tensor | None]:
    """For each window of the model the mask of a pass over whole rows, given that without a window."""
    found: dict[int | None, Tensor | None] = {}
    for window in windows(config):
        found[window] = mask
        if window is not None and window < T:  # a wider one hides nothing, and no mask is the fastest
            band = torch.ones(T, T, dtype=torch.bool, device=device).tril().triu(1 - window)
            found[window] = band[None, None] if mask is None else mask & band
    return found


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    plain: bool = False,
    sinks_H: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T scale) v, (B, H, T, K). Without a mask the pass is causal over equal positions.

    Args:
        plain: by matrix products and a softmax instead of torch's fused kernel.
        sinks_H: for each head a score that takes part in the softmax and has no value; only plainly.
        scale: 1 / sqrt(K) if not given.
    """
    if plain or sinks_H is not None:
        return _attend_plainly(q_BHTK, k_BGSK, v_BGSK, mask, dropout=dropout, sinks_H=sinks_H, scale=scale)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        scale=scale,
    )


def scores(
    q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, *, sinks_H: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """q k^T scale where a query may look and -inf elsewhere, (B, H, T, S); behind them, if there are sinks, their
    column. See ``attend``."""
    group = q_BHTK.shape[1] // k_BGSK.shape[1]
    if group > 1:
        k_BGSK = k_BGSK.repeat_interleave(group, dim=1)
    if mask is None:
        mask = torch.ones(q_BHTK.shape[2], k_BGSK.shape[2], dtype=torch.bool, device=q_BHTK.device).tril()
    scores_BHTS = (q_BHTK @ k_BGSK.mT) * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
    scores_BHTS = scores_BHTS.masked_fill(~mask, float("-inf"))
    if sinks_H is None:
        return scores_BHTS
    column = sinks_H.to(scores_BHTS.dtype)[:, None, None].expand(*scores_BHTS.shape[:-1], 1)
    return torch.cat((scores_BHTS, column), dim=-1)


def shares(
    q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None, *, sinks_H: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q k^T scale), (B, H, T, S): what each query takes of each token; the rest goes to the sinks, if there are
    any. See ``attend``."""
    return scores(q_BHTK, k_BGSK, mask, sinks_H=sinks_H, scale=scale).softmax(dim=-1)[..., : k_BGSK.shape[2]]


def _attend_plainly(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    sinks_H: Tensor | None,
    scale: float | None,
) -> Tensor:
    group = q_BHTK.shape[1] // k_BGSK.shape[1]
    if group > 1:
        v_BGSK = v_BGSK.repeat_interleave(group, dim=1)
    return F.dropout(shares(q_BHTK, k_BGSK, mask, sinks_H=sinks_H, scale=scale), dropout) @ v_BGSK


class Attention(nn.Module):
    """One layer's attention. ``c_attn`` makes queries, keys and values in one product, in that order; of a layer that
    reads another's keys and values queries alone."""

    scale: float | None = None
    """Of scores; none means 1 / sqrt(K)."""

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        setting = config.attention
        assert isinstance(setting, SoftmaxAttention)
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_width = config.n_head, config.n_kv_head, config.head_width
        self.dropout = config.dropout
        self.plain = False
        self.window = setting.window_of(layer)
        self.has_own = config.kv_source(layer) == layer
        self.passes_on = setting.share_kv > 1
        self.qk_eps = config.norm.eps if setting.qk_norm else None
        self.neighbours = config.position.kind == "rope" and config.position.pairs == "neighbours"
        path = f"transformer.h.{layer}.attn"
        self.c_attn = Linear(made[f"{path}.c_attn.weight"], bias=config.bias or setting.qkv_bias)
        scaled = setting.qk_norm == "scaled"
        self.q_norm = nn.Parameter(torch.empty(self.head_width)) if scaled else None
        self.k_norm = nn.Parameter(torch.empty(self.head_width)) if scaled and self.has_own else None
        self.sinks = nn.Parameter(torch.empty(config.n_head)) if setting.sinks else None
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side, before RoPE, (B, T, H + G, K), and values (B, T, G, K); G is 0 where the layer
        reads another's keys and values."""
        B, T, _ = x_BTD.shape
        own = self.n_kv_head if self.has_own else 0
        heads_BTHK = self.c_attn(x_BTD).view(B, T, self.n_head + 2 * own, self.head_width)
        # Queries and keys lie side by side and are treated alike: half as many operators.
        qk_BTHK, v_BTGK = heads_BTHK.split([self.n_head + own, own], dim=2)
        if self.qk_eps is not None:
            qk_BTHK = rms_norm(qk_BTHK, None, self.qk_eps)
            if self.q_norm is not None:
                qk_BTHK = qk_BTHK * self._qk_scales_HK(self.q_norm)
        return qk_BTHK, v_BTGK

    def _qk_scales_HK(self, q_norm: Tensor) -> Tensor:
        queries_HK = q_norm.expand(self.n_head, -1)
        if self.k_norm is None:
            return queries_HK
        return torch.cat((queries_HK, self.k_norm.expand(self.n_kv_head, -1)))

    def queries_keys_values(self, x_BTD: Tensor, where: Where) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer makes of its input, normalised and turned: queries (B, H, T, K), and twice (B, G, S, K), S
        with the tokens that are remembered."""
        T = x_BTD.shape[1]
        if where.before is not None and self.has_own:
            x_BTD = where.before(self.layer, x_BTD)
        qk_BTHK, v_BTGK = self.heads(x_BTD)
        if where.rotation is not None:
            cos, sin = (t[..., -x_BTD.shape[1] :, :, :] for t in where.rotation)
            qk_BTHK = rotate(qk_BTHK, cos, sin, neighbours=self.neighbours)
        q_BTHK, k_BTGK = qk_BTHK.split([self.n_head, v_BTGK.shape[2]], dim=2)
        return q_BTHK[:, -T:].transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)

    def compared(self, x_BTD: Tensor, where: Where, shared: Seen | None) -> tuple[Tensor, Seen, Tensor | None]:
        """Queries (B, H, T, K), the keys and values that they look at (the layer's own, which a cache takes in, or
        those that were ``shared``), and where they may look."""
        q_BHTK, k_BGTK, v_BGTK = self.queries_keys_values(x_BTD, where)
        if not self.has_own:
            assert shared is not None
            seen = shared
        elif where.cache is not None:
            assert not isinstance(where.cache, AttendingCache)
            assert where.positions_BT is not None
            seen = Seen(*where.cache.extend(self.layer, k_BGTK, v_BGTK, where.positions_BT))
        else:
            seen = Seen(k_BGTK, v_BGTK, None if where.before is None else where.positions_BT)
        if seen.slots_BS is None:
            return q_BHTK, seen, where.masks[self.window]
        assert where.positions_BT is not None
        queries_BT = where.positions_BT[:, -x_BTD.shape[1] :]
        return q_BHTK, seen, causal_mask(queries_BT, seen.slots_BS, self.window)

    def forward(self, x_BTD: Tensor, where: Where, shared: Seen | None = None) -> tuple[Tensor, Seen | None]:
        """What the layer adds, and the keys and values that it looked at, if others may share them. (Where nobody does
        they would be kept for nothing, and FSDP warns of what a module gives away.)"""
        B, T, _ = x_BTD.shape
        seen = None
        if isinstance(where.cache, AttendingCache):
            y_BHTK, seen = where.cache.attend(self, x_BTD, where, shared)
        else:
            q_BHTK, seen, mask = self.compared(x_BTD, where, shared)
            y_BHTK = attend(
                q_BHTK,
                seen.k_BGSK,
                seen.v_BGSK,
                mask,
                dropout=self.dropout if self.training else 0.0,
                plain=self.plain,
                sinks_H=self.sinks,
                scale=self.scale,
            )
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1)), seen if self.passes_on else None

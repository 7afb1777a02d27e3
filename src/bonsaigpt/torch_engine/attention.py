"""Causal self-attention with grouped queries, QK-norm and rotary positions; the mask is computed from positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import ModelConfig
from bonsaigpt.kv import AttendingCache, KVCache
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.elementwise import rms_norm, rotate
from bonsaigpt.torch_engine.linear import Linear

__all__ = ["Attention", "Where", "attend", "causal_mask", "document_mask", "shares"]


@dataclass(frozen=True)
class Where:
    """Where the tokens of this pass stand."""

    positions_BT: Tensor | None
    """True positions; None means 0 .. T-1 in every row, the case of training."""
    rotation: tuple[Tensor, Tensor] | None
    """cos and sin for these positions, (T, 1, K/2) or (B, T, 1, K/2), where the model uses RoPE."""
    cache: KVCache | AttendingCache | None
    mask: Tensor | None = None
    """Where a query may look, (B, 1, T, T); None means at every earlier position. With a cache it follows from the
    positions of its slots."""


def causal_mask(query_positions_BT: Tensor, key_positions_BS: Tensor) -> Tensor:
    """True where a query may look, (B, 1, T, S): at filled slots of its own or an earlier position."""
    keys = key_positions_BS[:, None, None, :]
    return (keys >= 0) & (keys <= query_positions_BT[:, None, :, None])


def document_mask(documents_BT: Tensor) -> Tensor:
    """True where a query may look, (B, 1, T, T): at its own or an earlier position of its own document."""
    T = documents_BT.shape[1]
    earlier_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
    return (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]) & earlier_TT


def attend(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None, *, dropout: float, plain: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, (B, H, T, K). Without a mask the pass is causal over equal positions.

    ``plain``: by matrix products and a softmax instead of torch's fused kernel.
    """
    if plain:
        return _attend_plainly(q_BHTK, k_BGSK, v_BGSK, mask, dropout=dropout)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )


def shares(q_BHTK: Tensor, k_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K)), (B, H, T, S): what each query takes of each token."""
    group = q_BHTK.shape[1] // k_BGSK.shape[1]
    if group > 1:
        k_BGSK = k_BGSK.repeat_interleave(group, dim=1)
    if mask is None:
        mask = torch.ones(q_BHTK.shape[2], k_BGSK.shape[2], dtype=torch.bool, device=q_BHTK.device).tril()
    scores_BHTS = (q_BHTK @ k_BGSK.mT) * q_BHTK.shape[-1] ** -0.5
    return scores_BHTS.masked_fill(~mask, float("-inf")).softmax(dim=-1)


def _attend_plainly(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None, *, dropout: float) -> Tensor:
    group = q_BHTK.shape[1] // k_BGSK.shape[1]
    if group > 1:
        v_BGSK = v_BGSK.repeat_interleave(group, dim=1)
    return F.dropout(shares(q_BHTK, k_BGSK, mask), dropout) @ v_BGSK


class Attention(nn.Module):
    """One layer's attention. ``c_attn`` makes queries, keys and values in one product, in that order."""

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_width = config.n_head, config.n_kv_head, config.head_width
        self.dropout = config.dropout
        self.plain = False
        self.qk_eps = config.norm.eps if config.attention.qk_norm else None
        self.neighbours = config.position.kind == "rope" and config.position.pairs == "neighbours"
        path = f"transformer.h.{layer}.attn"
        self.c_attn = Linear(made[f"{path}.c_attn.weight"], bias=config.bias)
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side, before RoPE, (B, T, H + G, K), and values (B, T, G, K)."""
        B, T, _ = x_BTD.shape
        heads_BTHK = self.c_attn(x_BTD).view(B, T, self.n_head + 2 * self.n_kv_head, self.head_width)
        # Queries and keys lie side by side and are treated alike: half as many operators.
        qk_BTHK, v_BTGK = heads_BTHK.split([self.n_head + self.n_kv_head, self.n_kv_head], dim=2)
        if self.qk_eps is not None:
            qk_BTHK = rms_norm(qk_BTHK, None, self.qk_eps)
        return qk_BTHK, v_BTGK

    def queries_keys_values(self, x_BTD: Tensor, where: Where) -> tuple[Tensor, Tensor, Tensor]:
        """What attention compares and what it mixes, (B, H, T, K) and twice (B, G, T, K), normalised and turned."""
        qk_BTHK, v_BTGK = self.heads(x_BTD)
        if where.rotation is not None:
            qk_BTHK = rotate(qk_BTHK, *where.rotation, neighbours=self.neighbours)
        q_BTHK, k_BTGK = qk_BTHK.split([self.n_head, self.n_kv_head], dim=2)
        return q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)

    def forward(self, x_BTD: Tensor, where: Where) -> Tensor:
        B, T, _ = x_BTD.shape
        if isinstance(where.cache, AttendingCache):
            y_BHTK = where.cache.attend(self, x_BTD, *self.heads(x_BTD))
            return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1))
        q_BHTK, k_BGTK, v_BGTK = self.queries_keys_values(x_BTD, where)
        mask = where.mask
        if where.cache is not None:
            k_BGTK, v_BGTK, slots_BS = where.cache.extend(self.layer, k_BGTK, v_BGTK, where.positions_BT)
            assert where.positions_BT is not None
            mask = causal_mask(where.positions_BT, slots_BS)
        y_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, mask, dropout=self.dropout if self.training else 0.0, plain=self.plain)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1))

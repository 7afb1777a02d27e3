"""Linear attention (Katharopoulos et al. 2020): weights that are dot products, so the past is a matrix.

The result at t is q_t . (sum over s <= t of k_s v_s^T). It can be summed in three ways, which differ in rounding alone:
``parallel`` makes all weights, T^2 of them; ``recurrent`` carries the K x V matrix from token to token (equations 16 to
20); ``chunked`` does the first within chunks and the second between them, with work that grows as T.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import LinearAttention, ModelConfig
from bonsaigpt.kv import AttendingCache
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.attention import Seen, Where
from bonsaigpt.torch_engine.elementwise import rotate
from bonsaigpt.torch_engine.linear import Linear

__all__ = ["LinearHeads", "chunked", "parallel", "recurrent"]

CHUNK = 64
"""Tokens of a chunk: of about the width of a head the two parts of the work are alike."""
_TINY = 1e-6
"""Added to the sum of the weights, which are above 0."""


def parallel(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sums for every query, (B, H, T, V), by all T^2 weights; ``mask``: True where a query may look."""
    weights_BHTT = q_BHTK @ k_BHTK.mT
    return (weights_BHTT.tril() if mask is None else weights_BHTT.masked_fill(~mask, 0.0)) @ v_BHTV


def recurrent(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, state_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """The same token by token, and the state after the last."""
    found: list[Tensor] = []
    for q_BHK, k_BHK, v_BHV in zip(q_BHTK.unbind(2), k_BHTK.unbind(2), v_BHTV.unbind(2), strict=True):
        state_BHKV = state_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
        found.append((q_BHK[..., None, :] @ state_BHKV).squeeze(-2))
    return torch.stack(found, dim=2), state_BHKV


def chunked(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, state_BHKV: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The same chunk by chunk, and the state after the last token; no state is the empty past."""
    T = q_BHTK.shape[2]
    chunk = min(chunk, T)
    padding = (0, 0, 0, -T % chunk)
    q, k, v = (F.pad(t, padding).unflatten(2, (-1, chunk)) for t in (q_BHTK, k_BHTK, v_BHTV))
    inside = (q @ k.mT).tril() @ v
    steps_BHNKV = k.mT @ v
    after_BHNKV = steps_BHNKV.cumsum(dim=2)
    before_BHNKV = after_BHNKV - steps_BHNKV
    if state_BHKV is not None:
        before_BHNKV = before_BHNKV + state_BHKV[:, :, None]
    end_BHKV = before_BHNKV[:, :, -1] + steps_BHNKV[:, :, -1]
    if state_BHKV is not None or q.shape[2] > 1:
        inside = inside + q @ before_BHNKV
    return inside.flatten(2, 3)[:, :, :T], end_BHKV


class LinearHeads(nn.Module):
    """One layer's linear attention; ``c_attn`` makes queries, keys and values, in that order.

    Under RoPE queries and keys turn after the feature map, in the sums alone and not in what they are divided by (Su et
    al. 2021, equation 19): turned, the weights might cancel.
    """

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        assert isinstance(config.attention, LinearAttention)
        self.layer = layer
        self.n_head, self.head_width = config.n_head, config.head_width
        self.form, self.eps = config.attention.form, config.norm.eps
        self.neighbours = config.position.kind == "rope" and config.position.pairs == "neighbours"
        path = f"transformer.h.{layer}.attn"
        self.c_attn = Linear(made[f"{path}.c_attn.weight"], bias=config.bias)
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def forward(self, x_BTD: Tensor, where: Where, shared: Seen | None = None) -> tuple[Tensor, None]:
        B, T, _ = x_BTD.shape
        heads_BHTK = self.c_attn(x_BTD).view(B, T, 3 * self.n_head, self.head_width).transpose(1, 2)
        q, k, v = heads_BHTK.chunk(3, dim=1)
        if self.form == "elu":
            q, k = F.elu(q) + 1.0, F.elu(k) + 1.0
        assert not isinstance(where.cache, AttendingCache)  # policies are refused for it
        state = None if where.cache is None else where.cache.recall(self.layer)
        y, after = self._sums(q, k, v, state, where)
        if where.cache is not None:
            where.cache.remember(self.layer, after, T)
        if self.form == "elu":
            y, total = y.split([self.head_width, 1], dim=-1)
            y = y / (total + _TINY)
        else:
            y = F.layer_norm(y, (self.head_width,), eps=self.eps)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1)), None

    def _sums(self, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, where: Where) -> tuple[Tensor, Tensor]:
        """The sums of values, and in the form `elu` in one column more those of the weights."""
        ones = torch.ones_like(v[..., :1])
        if where.rotation is None:
            return self._sum(q, k, torch.cat((v, ones), dim=-1) if self.form == "elu" else v, state, where)
        cos, sin = (t.transpose(-2, -3) for t in where.rotation)  # heads come before the time here
        turned_q, turned_k = (rotate(t, cos, sin, neighbours=self.neighbours) for t in (q, k))
        if self.form == "layernorm":
            return self._sum(turned_q, turned_k, v, state, where)
        of_values, of_weights = (None, None) if state is None else state.split([self.head_width, 1], dim=-1)
        parts = self._sum(turned_q, turned_k, v, of_values, where), self._sum(q, k, ones, of_weights, where)
        y, after = (torch.cat(pair, dim=-1) for pair in zip(*parts, strict=True))
        return y, after

    def _sum(self, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, where: Where) -> tuple[Tensor, Tensor]:
        if (mask := where.masks[None]) is not None:
            return parallel(q, k, v, mask), q.new_empty(0)  # of several documents there is no one state
        return chunked(q, k, v, state)

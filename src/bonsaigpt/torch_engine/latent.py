"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1, equations 9 to 19).

A token leaves a latent of C channels, from which the keys and values of all heads are made, and one key of R channels
that turns with the position. Over whole rows they are made, which takes the fewest operations. With a cache they never
are: the map from the latent to the keys is applied to the queries instead, and that to the values to the result
(section 2.1.2), so the latent and the turning key are all that is held and all that is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bonsaigpt.config import ModelConfig, RopePosition
from bonsaigpt.kv import AttendingCache, KVCache
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.attention import Seen, Where, attend, causal_mask
from bonsaigpt.torch_engine.elementwise import rms_norm, rotate
from bonsaigpt.torch_engine.linear import Linear
from bonsaigpt.torch_engine.rope import temperature
from bonsaigpt.torch_engine.structured import dense

__all__ = ["LatentHeads"]


class LatentHeads(nn.Module):
    """One layer's latent attention. ``c_attn`` makes queries, their turning channels, the latent and the turning key;
    ``c_up`` makes keys and values of the latent. The latent is RMS-normalised, without weights: ``c_up`` has some."""

    sinks: Tensor | None = None

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.head_width = config.n_head, config.head_width
        self.latent, self.turning = config.latent_width, config.rope_width
        self.dropout, self.eps = config.dropout, config.norm.eps
        self.plain = False
        position = config.position
        self.neighbours = isinstance(position, RopePosition) and position.pairs == "neighbours"
        # The table of angles sharpens the turning channels of queries and keys; the others are not in it.
        self.sharpen = temperature(position) ** 2 if isinstance(position, RopePosition) else 1.0
        self.scale = (self.head_width + self.turning) ** -0.5
        path = f"transformer.h.{layer}.attn"
        self.c_attn = Linear(made[f"{path}.c_attn.weight"], bias=config.bias)
        self.c_up = Linear(made[f"{path}.c_up.weight"], bias=config.bias)
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def forward(self, x_BTD: Tensor, where: Where, shared: Seen | None = None) -> tuple[Tensor, None]:
        B, T, _ = x_BTD.shape
        if where.cache is None:
            q_BHTE, seen, mask = self.compared(x_BTD, where)
            y_BHTK = self._attend(q_BHTE, seen.k_BGSK, seen.v_BGSK, mask)
        else:
            assert not isinstance(where.cache, AttendingCache)  # policies are refused for it
            y_BHTK = self._cached(x_BTD, where, where.cache)
        return self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, -1)), None

    def compared(self, x_BTD: Tensor, where: Where, shared: Seen | None = None) -> tuple[Tensor, Seen, Tensor | None]:
        """Over whole rows: queries (B, H, T, K + R), keys of as many channels, values, and where they may look."""
        q_BHTK, turned_BHTR, latent_BTC, key_B1TR = self._maps(x_BTD, where)
        B, H, T, K = q_BHTK.shape
        k_BHTK, v_BHTK = self.c_up(latent_BTC).view(B, T, 2 * H, K).transpose(1, 2).chunk(2, dim=1)
        q_BHTE = torch.cat((q_BHTK, turned_BHTR), dim=-1)
        k_BHTE = torch.cat((k_BHTK, key_B1TR.expand(-1, H, -1, -1)), dim=-1)
        return q_BHTE, Seen(k_BHTE, v_BHTK, None), where.masks[None]

    def _maps(self, x_BTD: Tensor, where: Where) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), their turning channels (B, H, T, R), the latent (B, T, C), and the key that turns."""
        B, T, _ = x_BTD.shape
        H, K, R = self.n_head, self.head_width, self.turning
        q_BTE, turned_BTE, latent_BTC, key_BTR = self.c_attn(x_BTD).split([H * K, H * R, self.latent, R], dim=-1)
        q_BHTK = q_BTE.view(B, T, H, K).transpose(1, 2) * self.sharpen
        latent_BTC = rms_norm(latent_BTC, None, self.eps)
        turned_BTHR, key_BT1R = turned_BTE.view(B, T, H, R), key_BTR[:, :, None]
        if where.rotation is not None:
            turned_BTHR = rotate(turned_BTHR, *where.rotation, neighbours=self.neighbours)
            key_BT1R = rotate(key_BT1R, *where.rotation, neighbours=self.neighbours)
        return q_BHTK, turned_BTHR.transpose(1, 2), latent_BTC, key_BT1R.transpose(1, 2)

    def _cached(self, x_BTD: Tensor, where: Where, cache: KVCache) -> Tensor:
        assert where.positions_BT is not None
        q_BHTK, turned_BHTR, latent_BTC, key_B1TR = self._maps(x_BTD, where)
        key_B1SR, latent_B1SC, slots_BS = cache.extend(self.layer, key_B1TR, latent_BTC[:, None], where.positions_BT)
        # A bias of the keys adds the same to all scores of a query, which a softmax does not see.
        to_keys_HKC, to_values_HKC = dense(self.c_up.weight).view(2, self.n_head, self.head_width, -1)
        q_BHTE = torch.cat((q_BHTK @ to_keys_HKC, turned_BHTR), dim=-1)
        k_B1SE = torch.cat((latent_B1SC, key_B1SR), dim=-1)
        mixed_BHTC = self._attend(q_BHTE, k_B1SE, latent_B1SC, causal_mask(where.positions_BT, slots_BS))
        y_BHTK = mixed_BHTC @ to_values_HKC.mT
        if self.c_up.bias is None:
            return y_BHTK
        return y_BHTK + self.c_up.bias.view(2, self.n_head, 1, self.head_width)[1]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, mask, dropout=dropout, plain=self.plain, scale=self.scale)

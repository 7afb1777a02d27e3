"""A cache policy in one pass over whole rows, with gradients: what training sees of it.

Read token by token, a query sees its own token exactly and all before it as the cache gives them back. In one pass that
is attention to coded keys and values with the exact ones on the diagonal, under the policy's window. Codes have no
gradient; it goes straight through them (Bengio et al. 2013), so that keys and values learn to be coded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.config import KeysAndValues, KVConfig, LayerPolicy, ModelConfig, WindowSelection
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import AttendingCache
from bonsaigpt.torch_engine.attention import Attention, Seen, Where, attend
from bonsaigpt.torch_engine.elementwise import rotate
from bonsaigpt.torch_engine.kv.store import rounded

__all__ = ["OnePass"]


class OnePass(AttendingCache):
    """Of all layers. It holds nothing, so that rows, workers and recomputed blocks may share it.

    Raises:
        ConfigError: a model of this configuration cannot be trained with this policy.
    """

    turns = False

    def __init__(self, config: ModelConfig, kv: KVConfig) -> None:
        try:
            kv.check_training(config)
        except ValueError as error:
            raise ConfigError(f"the cache policy cannot be trained with: {error}") from None
        self.kv = kv
        self._neighbours = config.position.kind == "rope" and config.position.pairs == "neighbours"
        self._share = [config.kv_source(layer) for layer in range(config.n_layer)]
        self._policies = {layer: kv.held(config, layer) for layer in config.kv_layers}

    @property
    def length(self) -> int:
        return 0

    def bits(self) -> int:
        return 0

    def attend(self, attention: Attention, x_BTD: Tensor, where: Where, shared: Seen | None) -> tuple[Tensor, Seen]:
        policy = self._policies[self._share[attention.layer]]
        qk_BTHK, v_BTGK = attention.heads(x_BTD)
        q_BTHK, k_BTGK = self._turned(qk_BTHK, where).split([attention.n_head, v_BTGK.shape[2]], dim=2)
        if attention.has_own:
            k_BGTK, v_BGTK = k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
            unturned_BGTK = qk_BTHK[:, :, attention.n_head :].transpose(1, 2)
            held = self._held(policy, attention, x_BTD, unturned_BGTK, k_BGTK, v_BGTK, where)
            shared = Seen(k_BGTK, v_BGTK, None, held)
        assert shared is not None
        mask = _mask(policy, x_BTD.shape[1], where.masks[attention.window], x_BTD.device)
        return _attend(attention, q_BTHK.transpose(1, 2), shared, mask), shared

    def _turned(self, x_BTHK: Tensor, where: Where) -> Tensor:
        return x_BTHK if where.rotation is None else rotate(x_BTHK, *where.rotation, neighbours=self._neighbours)

    def _held(
        self,
        policy: LayerPolicy,
        attention: Attention,
        x_BTD: Tensor,
        unturned_BGTK: Tensor,
        k_BGTK: Tensor,
        v_BGTK: Tensor,
        where: Where,
    ) -> tuple[Tensor, Tensor] | None:
        """Keys, turned, and values as the cache gives them back; None if exactly so."""
        if all(form.kind == "exact" for form in policy.formats.values()):
            return None
        hold = policy.hold
        if not isinstance(hold, KeysAndValues):
            qk_BTHK, v_BTGK = attention.heads(rounded(x_BTD[:, None], hold.x)[:, 0])
            k_BTGK = self._turned(qk_BTHK[:, :, attention.n_head :], where)
            return k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        v_BGTK = rounded(v_BGTK, hold.v)
        if hold.keys == "unrotated":
            return self._turned(rounded(unturned_BGTK, hold.k).transpose(1, 2), where).transpose(1, 2), v_BGTK
        return rounded(k_BGTK, hold.k), v_BGTK


def _mask(policy: LayerPolicy, T: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Where a query may look, given where the model itself lets it; see ``attention.masks``."""
    select = policy.select
    if not isinstance(select, WindowSelection) or select.window >= T:
        return mask
    at = torch.arange(T, device=device)
    ago = at[:, None] - at
    seen = (ago >= 0) & ((ago < select.window) | (at < select.sinks))
    return seen[None, None] if mask is None else mask & seen


def _attend(attention: Attention, q_BHTK: Tensor, seen: Seen, mask: Tensor | None) -> Tensor:
    """Attention to what is held of the tokens before, and to a query's own as it is."""
    dropout = attention.dropout if attention.training else 0.0
    settings = {"sinks_H": attention.sinks, "scale": attention.scale}
    if seen.held is None:
        return attend(q_BHTK, seen.k_BGSK, seen.v_BGSK, mask, dropout=dropout, plain=attention.plain, **settings)
    group = attention.n_head // attention.n_kv_head
    own_k, own_v, k, v = (
        t if group == 1 else t.repeat_interleave(group, dim=1) for t in (seen.k_BGSK, seen.v_BGSK, *seen.held)
    )
    T = q_BHTK.shape[2]
    diagonal = torch.eye(T, dtype=torch.bool, device=q_BHTK.device)
    if mask is None:
        mask = diagonal.cumsum(1).bool().mT
    scale = attention.head_width**-0.5 if attention.scale is None else attention.scale
    own_BHT = (q_BHTK * own_k).sum(-1)
    scores_BHTT = torch.where(diagonal, own_BHT[..., None], q_BHTK @ k.mT) * scale
    scores_BHTT = scores_BHTT.masked_fill(~mask, float("-inf"))
    if attention.sinks is not None:
        column = attention.sinks.to(scores_BHTT.dtype)[:, None, None].expand(*scores_BHTT.shape[:-1], 1)
        scores_BHTT = torch.cat((scores_BHTT, column), dim=-1)
    shares_BHTT = F.dropout(scores_BHTT.softmax(dim=-1)[..., :T], dropout)
    own_BHT = shares_BHTT.diagonal(dim1=-2, dim2=-1)
    return shares_BHTT @ v + own_BHT[..., None] * (own_v - v)

"""A mixture of experts: each token goes through the few MLPs that a router chose for it (Shazeer et al. 2017).

The matrices of all experts stand in one, hidden units of one expert after those of the other. So a weight that is made
of factors is shared among them with no word about it: of a Kronecker product whose A has E m1 rows each expert owns m1
of them, and B is everybody's. A token's hidden units are those of its experts; no others are computed.

Tokens are put into blocks, each of one expert (Gale et al. 2022, MegaBlocks), and one batched product does all blocks:
there is no loop over experts, no token is dropped, and no shape hangs on what the router says. So a step compiles,
nothing waits for the device, and the memory of a step can be counted without computing it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.config import ExpertsMLP, ModelConfig
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.linear import Linear
from bonsaigpt.torch_engine.mlp import MLP
from bonsaigpt.torch_engine.structured import dense

__all__ = ["Experts", "blocks", "unevenness"]


class Experts(MLP):
    """The sum of the outputs of a token's experts, by the router's probabilities of these over their sum: experts that
    are all alike give what one alone would.

    That sum is a constant to the backward pass. A single active expert always has the share 1, and still the router
    hears whether more of it would have been better, as in Switch (Fedus et al. 2021), whose share is the probability.
    """

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__(config, layer, made)
        assert isinstance(config.mlp, ExpertsMLP)
        self.experts, self.active = config.mlp.experts, config.mlp.active
        self.router = Linear(made[f"transformer.h.{layer}.mlp.router.weight"], bias=False)

    def route(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of all experts (B, T, E), float32, and which are the ``active`` likeliest, (B, T, active)."""
        probabilities_BTE = self.router(x_BTD).float().softmax(dim=-1)
        return probabilities_BTE, probabilities_BTE.topk(self.active, dim=-1).indices

    def forward(self, x_BTD: Tensor, loads: list[Tensor] | None = None) -> Tensor:
        probabilities_BTE, chosen = self.route(x_BTD)
        if loads is not None:
            loads.append(unevenness(probabilities_BTE, chosen))
        x_ND, chosen_N = x_BTD.flatten(0, -2), chosen.flatten()
        places_N, experts_J, size = blocks(chosen_N, self.experts)
        room = x_ND.new_zeros(len(experts_J) * size, x_ND.shape[-1])
        x_JSD = room.index_copy(0, places_N, x_ND.repeat_interleave(self.active, dim=0)).unflatten(0, (-1, size))
        gate_JSF = self._inner(self.c_gate, x_JSD, experts_J) if self.kind == "swiglu" else None
        h_JSF = self.bend(self._inner(self.c_fc, x_JSD, experts_J), gate_JSF)
        outer_EDF = dense(self.c_proj.weight).unflatten(1, (self.experts, -1)).transpose(0, 1)
        y_JSD = _products(h_JSF, outer_EDF, experts_J)
        y_BTKD = y_JSD.flatten(0, 1).index_select(0, places_N).view(*chosen.shape, -1)
        picked = probabilities_BTE.gather(-1, chosen)
        shares = picked / picked.sum(dim=-1, keepdim=True).detach()
        y_BTD = (shares[..., None].to(y_BTKD.dtype) * y_BTKD).sum(dim=-2)
        return y_BTD if self.c_proj.bias is None else y_BTD + self.c_proj.bias

    def _inner(self, linear: Linear, x_JSD: Tensor, experts_J: Tensor) -> Tensor:
        """D -> F of each block's expert."""
        weight_EFD = dense(linear.weight).unflatten(0, (self.experts, -1))
        h_JSF = _products(x_JSD, weight_EFD, experts_J)
        if linear.bias is None:
            return h_JSF
        return h_JSF + F.embedding(experts_J, linear.bias.view(self.experts, -1))[:, None]

    def units(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the non-linearity of every expert would see of every token, (N, E, F), and which of them it meets,
        (N, E, 1)."""
        gate = self.c_gate if self.kind == "swiglu" else self.c_fc
        chosen_NK = self.route(x_BTD)[1].flatten(0, -2)
        meets_NE = (chosen_NK[..., None] == torch.arange(self.experts, device=x_BTD.device)).any(dim=1)
        return gate(x_BTD).flatten(0, -2).unflatten(-1, (self.experts, -1)), meets_NE[..., None]


def blocks(experts_N: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Where each of N tokens stands among blocks of one expert each: its row; the expert of each of J blocks; and the
    rows of a block. There are as many blocks as the worst case takes: rows that nobody stands in, up to a half
    more, are computed for nothing, and while training every expert's weights are copied up to five times. Smaller
    blocks waste fewer rows and copy more: at half this size a step took as long (CPU)."""
    tokens = len(experts_N)
    size = 1 << max(tokens // (2 * count), 1).bit_length() - 1
    is_its_NE = experts_N[:, None] == torch.arange(count, device=experts_N.device)
    counts_NE = is_its_NE.long().cumsum(dim=0)
    used_E = (counts_NE[-1] + size - 1) // size
    ends_E = used_E.cumsum(dim=0)
    before_N = counts_NE.gather(1, experts_N[:, None])[:, 0] - 1
    places_N = ((ends_E - used_E) * size)[experts_N] + before_N
    numbers_J = torch.arange((tokens + count * (size - 1)) // size, device=experts_N.device)
    experts_J = torch.searchsorted(ends_E, numbers_J, right=True).clamp(max=count - 1)
    return places_N, experts_J, size


def unevenness(probabilities_BTE: Tensor, chosen: Tensor) -> Tensor:
    """E sum_e f_e P_e of each row, (B,): f the share of its tokens' choices that fell on an expert, P its mean
    probability; 1 where all are alike, up to E (DeepSeek-AI 2024, equations 17 to 20). A sum over rows, so it does not
    matter how a batch is cut."""
    E = probabilities_BTE.shape[-1]
    f_BE = (chosen[..., None] == torch.arange(E, device=chosen.device)).float().mean(dim=(1, 2))
    return E * (f_BE * probabilities_BTE.mean(dim=1)).sum(dim=-1)


def _products(x_JSI: Tensor, weights_EOI: Tensor, experts_J: Tensor) -> Tensor:
    """``x @ weight.T`` of each block with the weight of its expert, (J, S, O)."""
    if torch.is_grad_enabled():
        # Indexing adds gradients up in whatever order threads come; an embedding in a fixed one.
        own_JOI = F.embedding(experts_J, weights_EOI.flatten(1)).unflatten(1, weights_EOI.shape[1:])
    elif experts_J.device.type == "cpu":  # nobody waits for the numbers here, and no weight is copied
        return torch.stack([x @ weights_EOI[e].T for x, e in zip(x_JSI, experts_J.tolist(), strict=True)])
    else:
        own_JOI = weights_EOI[experts_J]
    return x_JSI @ own_JOI.mT

"""Cross-entropy as a sum and a count, so that any split into micro-batches or processes adds up to the same mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import ExpertsMLP, LogitsDistill, NoDistill
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.torch_engine.carry import Carry
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.structured import dense

__all__ = ["Learner", "Taught", "cross_entropy_sum", "distilled_sum", "fused_head_loss", "weighted_sum"]

WHOLE = 2**23
"""Logits up to this many elements (32 MiB of float32) are held at once; more are worked off in chunks."""

Taught: TypeAlias = tuple[Tensor, ...]
"""A teacher's logits (B, T, V), and if they are asked for its residual streams after each block (B, T, D)."""

_ALONE = NoDistill()


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood in nats, summed over the targets that are not IGNORE; a scalar of float32 at least."""
    logits_NV = _wide(logits_BTV.flatten(0, -2))
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def _wide(tensor: Tensor) -> Tensor:
    """In float32 if it is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Learner(nn.Module):
    """A model and its loss as one function: what is compiled, spread over processes, and run by each worker."""

    def __init__(self, model: GPT, *, z_loss: float = 0.0, distill: LogitsDistill | NoDistill = _ALONE) -> None:
        super().__init__()
        self.model, self.z_loss, self.distill = model, z_loss, distill

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor | None = None,
        taught: Taught | None = None,
        carry: Carry | None = None,
        asked_N: Tensor | None = None,
        weights_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The objective to descend and the cross-entropy (detached), both sums over the targets, in nats.

        ``taught``: what the teacher says of the same tokens, if there is one (see ``teacher.py``). Logits are then held
        whole, whatever the vocabulary: how many rows a pass takes is counted with them. ``asked_N``: places of the
        targets that count, in the flattened batch: then the head is applied to no others. ``weights_BT``: what each
        target's loss is multiplied with in the objective; then logits are held whole, too.
        """
        model = self.model
        streams: list[Tensor] | None = [] if taught is not None and taught[1:] else None
        balance = model.config.mlp.balance if isinstance(model.config.mlp, ExpertsMLP) else 0.0
        loads: list[Tensor] | None = [] if balance else None
        hidden_BTD = model.hidden(tokens_BT, documents_BT=documents_BT, carry=carry, streams=streams, loads=loads)
        asked_BT = targets_BT
        if asked_N is not None:
            hidden_BTD, asked_BT = hidden_BTD.flatten(0, 1)[asked_N][None], targets_BT.flatten()[asked_N][None]
        if weights_BT is None:
            objective, loss = self._of_hidden(hidden_BTD, asked_BT, taught, streams or [])
        else:
            asked_weights = weights_BT if asked_N is None else weights_BT.flatten()[asked_N][None]
            objective, loss = weighted_sum(model.logits(hidden_BTD), asked_BT, asked_weights)
        if loads:
            counts_B = (targets_BT != IGNORE).sum(dim=-1)
            objective = objective + balance * (torch.stack(loads).sum(dim=0) * counts_B).sum()
        return objective, loss.detach()

    def _of_hidden(
        self, hidden_BTD: Tensor, targets_BT: Tensor, taught: Taught | None, streams: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        if taught is None and targets_BT.numel() * model.config.vocabulary_rows > WHOLE:
            return fused_head_loss(
                hidden_BTD,
                dense(model.head_weight),
                targets_BT,
                vocabulary=model.config.vocabulary,
                scale=1.0 / model.config.width_ratio,
                softcap=model.config.logit_softcap,
                z_loss=self.z_loss,
            )
        logits_BTV = model.logits(hidden_BTD)
        loss = cross_entropy_sum(logits_BTV, targets_BT)
        objective = loss
        if taught is not None and isinstance(self.distill, LogitsDistill):
            objective = distilled_sum(self.distill, loss, logits_BTV, streams, targets_BT, taught)
        if self.z_loss:
            partition_BT = _wide(logits_BTV).logsumexp(dim=-1).where(targets_BT != IGNORE, 0.0)
            objective = objective + self.z_loss * partition_BT.square().sum()
        return objective, loss


def weighted_sum(logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies times weights, and without them; sums over the targets."""
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return (losses_N * weights_BT.flatten()).sum(), losses_N.sum()


def distilled_sum(
    distill: LogitsDistill,
    loss: Tensor,
    logits_BTV: Tensor,
    streams: Sequence[Tensor],
    targets_BT: Tensor,
    taught: Taught,
) -> Tensor:
    """The objective of a model that is taught: its cross-entropy ``loss``, its divergence from the teacher (Hinton et
    al. 2015, section 2: T^2 keeps its gradient's size) and the error of its residual streams; sums over the targets."""
    teacher_BTV, *wished = taught
    counts_BT = targets_BT != IGNORE
    ours_BTV = (logits_BTV.float() / distill.temperature).log_softmax(dim=-1)
    theirs_BTV = (teacher_BTV.float() / distill.temperature).log_softmax(dim=-1)
    divergence_BT = (theirs_BTV.exp() * (theirs_BTV - ours_BTV)).sum(dim=-1)
    softened = distill.temperature**2 * divergence_BT.where(counts_BT, 0.0).sum()
    objective = (1.0 - distill.share) * loss + distill.share * softened
    for ours_BTD, theirs_BTD in zip(streams, wished, strict=True):
        off_BT = (ours_BTD - theirs_BTD).float().square().sum(dim=-1)
        error_BT = off_BT / theirs_BTD.float().square().sum(dim=-1).clamp_min(1e-12)
        objective = objective + distill.hidden / len(wished) * error_BT.where(counts_BT, 0.0).sum()
    return objective


def fused_head_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    vocabulary: int,
    scale: float = 1.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    whole: int = WHOLE,
) -> tuple[Tensor, Tensor]:
    """Head and cross-entropy in one, as ``Learner`` gives them, without ever holding the logits of a batch.

    Rows are taken in chunks of at most ``whole`` logits, and a chunk's gradients are computed while its logits are at
    hand: nothing is recomputed, and only the gradients of ``hidden`` and ``weight`` are kept.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    settings = (vocabulary, scale, softcap, z_loss, max(1, whole // weight_VD.shape[0]))
    objective, loss = _FusedHeadLoss.apply(hidden_ND, weight_VD, targets_N, settings)
    return objective, loss


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        settings: tuple[int, float, float, float, int],
    ) -> tuple[Tensor, Tensor]:
        vocabulary, scale, softcap, z_loss, rows = settings
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        hidden_grad_ND = torch.empty_like(hidden_ND)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=wide)
        objective, loss = hidden_ND.new_zeros((), dtype=wide), hidden_ND.new_zeros((), dtype=wide)
        weight = weight_VD[:vocabulary]
        for first in range(0, len(targets_N), rows):
            hidden, targets = hidden_ND[first : first + rows], targets_N[first : first + rows]
            kept = (targets != IGNORE)[:, None]
            picked = targets.clamp_min(0)[:, None]
            logits = F.linear(hidden, weight).to(wide) * scale
            bend: Tensor | float = 1.0
            if softcap:
                bent = torch.tanh(logits / softcap)
                logits, bend = softcap * bent, 1.0 - bent.square()
            partition = logits.logsumexp(dim=-1, keepdim=True)
            cross_entropy = ((partition - logits.gather(1, picked)) * kept).sum()
            loss += cross_entropy
            objective += cross_entropy + z_loss * (partition * kept).square().sum()
            # d/dlogits of -log p(target) + z log^2 Z is softmax * (1 + 2 z log Z) - onehot.
            grad = torch.exp(logits - partition) * (1.0 + 2.0 * z_loss * partition)
            grad.scatter_add_(1, picked, -torch.ones_like(partition))
            grad = (grad * bend * kept * scale).to(weight.dtype)
            hidden_grad_ND[first : first + rows] = grad @ weight
            weight_grad_VD[:vocabulary] += (grad.T @ hidden.to(grad.dtype)).to(wide)
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(loss)
        return objective, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        return hidden_grad_ND * grads[0].to(hidden_grad_ND.dtype), weight_grad_VD * grads[0], None, None

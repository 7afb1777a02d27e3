"""Cross-entropy as a sum and a count, so that any split into micro-batches or processes adds up to the same mean."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.data.batches import IGNORE

__all__ = ["cross_entropy_sum"]


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood in nats, summed over the targets that are not IGNORE; a float32 scalar."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")

"""Whether a step's gradient may be used, decided on the device: nobody waits for the answer.

A step is skipped if its loss or gradient is not finite, or if its gradient norm stands out: above ten times the running
mean and ``spike`` standard deviations of its logarithm. After ``max_skips`` in a row no step is taken until the
run goes back to a checkpoint, so it does not matter how much later somebody looks. The same place holds the loss scale
of fp16, which falls when a gradient overflows and grows again after a long quiet stretch (Micikevicius et al. 2018).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Guard"]

_WARMUP = 50
"""Steps that are looked at before any is called a spike."""
_RATE = 0.02
"""Weight of the newest step in the running mean and variance."""
_GROWTH = 2000
"""Good steps after which the loss scale is doubled."""


class Guard:
    """Running statistics of the logarithm of the gradient norm, counts of skipped steps, and the loss scale."""

    FIELDS = ("mean", "variance", "seen", "scale", "quiet", "skipped", "in_a_row")

    def __init__(
        self, *, spike: float, device: torch.device, max_skips: float = math.inf, loss_scaling: bool = False
    ) -> None:
        self.spike, self.max_skips, self.loss_scaling = spike, max_skips, loss_scaling
        zero = torch.zeros((), device=device)
        self.mean, self.variance, self.seen, self.quiet, self.skipped, self.in_a_row = (zero.clone() for _ in range(6))
        self.scale = torch.full((), 2.0**16 if loss_scaling else 1.0, device=device)

    @torch.no_grad()
    def judge(self, norm: Tensor, loss: Tensor) -> Tensor:
        """1 if the step may be taken, else 0. ``norm`` is of the gradient before clipping, without the loss scale."""
        finite = norm.isfinite() & loss.isfinite()
        good = finite
        size = norm.clamp_min(1e-30).log()
        if self.spike:
            limit = self.mean + (self.spike * self.variance.sqrt()).clamp_min(math.log(10.0))
            good = finite & ((size <= limit) | (self.seen < _WARMUP))
        is_shut = self.in_a_row >= self.max_skips
        counts = ~(good | is_shut)
        if self.loss_scaling:  # an overflow that a smaller scale may mend is no trouble yet
            counts &= finite | (self.scale <= 1.0)
        good = good & ~is_shut
        keep = good.float()
        rate = keep / (self.seen + 1).clamp_max(1 / _RATE)
        delta = torch.where(good, size - self.mean, 0.0)
        self.mean += rate * delta
        self.variance += rate * (delta.square() - self.variance)
        self.seen += keep
        self.skipped += 1 - keep
        self.in_a_row.add_(counts).mul_(1 - keep)
        if self.loss_scaling:
            self.quiet.add_(1.0).mul_(finite)
            doubled = self.quiet >= _GROWTH
            self.scale.mul_(torch.where(finite, torch.where(doubled, 2.0, 1.0), 0.5))
            self.quiet.mul_((~doubled).float())
        return keep

    def arrays(self) -> np.ndarray:
        """All numbers, (7,) float32, in the order of ``FIELDS``."""
        return torch.stack([getattr(self, name) for name in self.FIELDS]).cpu().numpy().copy()

    def load(self, values: np.ndarray | Tensor) -> None:
        """Put back what ``arrays`` gave."""
        for name, value in zip(self.FIELDS, values.tolist(), strict=True):
            getattr(self, name).fill_(value)

"""One optimizer step over micro-batches, and the evaluation of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.randomness import key
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.loss import cross_entropy_sum
from bonsaigpt.torch_engine.model import GPT

__all__ = ["State", "StepMetrics", "evaluate_batch", "train_step"]


@dataclass(frozen=True)
class State:
    """What a step changes, in place."""

    model: GPT
    optimizer: torch.optim.AdamW


@dataclass(frozen=True)
class StepMetrics:
    """Left on the device until somebody asks."""

    loss_sum: Tensor
    count: int
    grad_norm: Tensor

    def host(self) -> dict[str, float]:
        """``loss`` (nats a token) and ``grad_norm`` (before clipping); waits for the device."""
        return {"loss": self.loss_sum.item() / self.count, "grad_norm": self.grad_norm.item()}


def train_step(
    state: State, batch: Batch, *, config: RunConfig, placement: Placement, lr: float, step: int
) -> StepMetrics:
    """Forward, backward and update. The gradient is of the mean over the whole batch, however it is cut."""
    model, optimizer = state.model, state.optimizer
    model.train()
    parts = config.train.grad_accum
    rows = len(batch.tokens_BT) // parts
    tokens_BT, targets_BT = to_device(batch, placement.device)
    total = torch.zeros((), device=placement.device)
    for part in range(parts):
        cut = slice(part * rows, (part + 1) * rows)
        with dropout_noise(config, step, part, placement.device):
            with placement.autocast():
                logits_BTV = model(tokens_BT[cut])
            loss_sum = cross_entropy_sum(logits_BTV, targets_BT[cut])
        (loss_sum / batch.count).backward()
        total += loss_sum.detach()
    limit = config.optim.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepMetrics(total, batch.count, grad_norm)


@torch.inference_mode()
def evaluate_batch(model: GPT, batch: Batch, placement: Placement, *, exact: bool) -> tuple[float, int]:
    """Sum of the loss in nats, and, if ``exact``, rows whose every target is the model's first choice."""
    model.eval()
    tokens_BT, targets_BT = to_device(batch, placement.device)
    loss_sum, right = 0.0, 0
    # As many rows at once as keep the logits below 2^25 elements (128 MiB): a vocabulary of 50,257 needs the bound.
    rows = max(1, 2**25 // (tokens_BT.shape[1] * model.config.vocabulary))
    for tokens, targets in zip(tokens_BT.split(rows), targets_BT.split(rows), strict=True):
        with placement.autocast():
            logits_BTV = model(tokens)
        loss_sum += cross_entropy_sum(logits_BTV, targets).item()
        if exact:
            right_BT = (logits_BTV.argmax(dim=-1) == targets) | (targets == IGNORE)
            right += int(right_BT.all(dim=1).sum())
    return loss_sum, right


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and targets as tensors; on a GPU the copy does not wait."""
    # Inputs and targets are two views of one window; a strided copy to a GPU would wait in spite of pinning.
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in (batch.tokens_BT, batch.targets_BT))
    if device.type == "cuda":
        return tokens.pin_memory().to(device, non_blocking=True), targets.pin_memory().to(device, non_blocking=True)
    return tokens.to(device), targets.to(device)


@contextmanager
def dropout_noise(config: RunConfig, step: int, part: int, device: torch.device) -> Iterator[None]:
    """Make dropout a function of (seed, step, micro-batch), and leave the process' own generators as they were."""
    if config.model.dropout == 0:
        yield
        return
    accelerators = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices=accelerators, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(key(config.seed, "dropout", step, part) >> 1)
        yield

"""One optimizer step over micro-batches, and the evaluation of a batch or of single tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.randomness import key
from bonsaigpt.torch_engine.carry import Carried
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.guard import Guard
from bonsaigpt.torch_engine.health import Checkup, to_host
from bonsaigpt.torch_engine.loss import cross_entropy_sum
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.optim import Optimizer
from bonsaigpt.torch_engine.parallel import Layout
from bonsaigpt.torch_engine.profiling import mark
from bonsaigpt.torch_engine.teacher import Teacher
from bonsaigpt.torch_engine.workers import WorkerPool
from bonsaigpt.trace import Look

__all__ = ["State", "StepMetrics", "evaluate_batch", "token_losses", "train_step"]


@dataclass(frozen=True)
class State:
    """What a step changes, in place."""

    model: GPT
    optimizer: Optimizer
    guard: Guard
    layout: Layout
    pool: WorkerPool
    carried: Carried | None = None
    """The memory from batch to batch, where the run has one."""
    averaged: GPT | None = None
    """The same model over the average of the weights, where the run keeps one."""
    teacher: Teacher | None = None
    """Who teaches the model, if anybody does."""


@dataclass(frozen=True)
class StepMetrics:
    """Left on the device until somebody asks."""

    loss_sum: Tensor
    count: int
    grad_norm: Tensor
    skipped: Tensor
    skipped_in_a_row: Tensor
    figures: dict[str, Tensor] | None = None
    """Of the step's health, if it was asked."""

    def host(self) -> dict[str, float]:
        """``loss`` (nats a token), ``grad_norm`` (before clipping), ``skipped`` steps so far and in a row; waits."""
        names = ("grad_norm", "skipped", "skipped_in_a_row")
        loss_sum, *rest = torch.stack([self.loss_sum, *(getattr(self, name) for name in names)]).tolist()
        return {"loss": loss_sum / self.count, **dict(zip(names, rest, strict=True))}

    def health(self) -> Arrays | None:
        """The figures on the host, float32; waits."""
        return None if self.figures is None else to_host(self.figures)


def train_step(
    state: State,
    batch: Batch,
    *,
    config: RunConfig,
    placement: Placement,
    share: float,
    step: int,
    look: Look | None = None,
) -> StepMetrics:
    """Forward, backward and update. The gradient is of the mean over the whole batch, however it is cut."""
    layout, guard, optimizer, pool = state.layout, state.guard, state.optimizer, state.pool
    world = layout.world
    with mark("data"):
        own = batch.share(world.process.rank, world.size)
        tokens_BT, targets_BT, documents_BT = to_device(own, placement.device)
    factor = guard.scale * world.size / batch.count
    parts = cuts(tokens_BT.shape[0], micro_rows(config, tokens_BT.shape[1]), pool.count)
    first_part = world.process.rank * len(parts)
    if state.carried is not None:
        state.carried.begin(own.reset_B)

    def learn(part: int) -> Tensor:
        learner, rows = layout.learners[part % pool.count], slice(*parts[part])
        carry = None if state.carried is None else state.carried.of(rows, tokens_BT.shape[1])
        with layout.passing(last=part == len(parts) - 1):
            with (
                mark("forward"),
                dropout_noise(config, step, first_part + part, placement.device),
                placement.autocast(),
            ):
                learner.train()
                documents = None if documents_BT is None else documents_BT[rows]
                taught = None if state.teacher is None else state.teacher(tokens_BT[rows], documents)
                asked = None if taught is not None else asked_places(own.targets_BT[rows], config, placement.device)
                weights = None
                if own.weights_BT is not None:
                    weights = torch.from_numpy(own.weights_BT[rows]).to(placement.device)
                objective, loss = learner(tokens_BT[rows], targets_BT[rows], documents, taught, carry, asked, weights)
            with mark("backward"):
                (objective * factor).backward()
            if carry is not None:
                carry.keep()
        return loss

    with pool.sharing():
        losses = pool.map(learn, range(len(parts)))
        with mark("backward"):
            gradients = layout.gradients()
        with mark("clip"):
            if guard.loss_scaling:
                for gradient in gradients:
                    gradient.div_(guard.scale)
            checkup = None
            if look is not None:  # every process looks at the same rows: how many processes there are changes nothing
                checkup = Checkup(state.model, layout)
                seen = batch.first(max(1, look.tokens // batch.tokens_BT.shape[1]))
                tokens, _, documents = to_device(seen, placement.device)
                checkup.activations(tokens, documents, look, placement)
            norm, total = layout.totals(gradients, torch.stack(losses).sum())
            keep = guard.judge(norm, total)
            if state.carried is not None:
                state.carried.forget_unless(keep)
            if limit := config.optim.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(layout.parameters.values(), limit, norm)
        with mark("optimizer"):
            optimizer.step(share, keep)
            if checkup is not None:
                checkup.updates()
            optimizer.zero_grad()
    figures = None if checkup is None else checkup.figures
    return StepMetrics(total, batch.count, norm, guard.skipped.clone(), guard.in_a_row.clone(), figures)


def asked_places(targets_BT: np.ndarray, config: RunConfig, device: torch.device) -> Tensor | None:
    """Where the targets that count are, if they are fewer than half and the head can do without the others: a compiled
    step takes batches of one shape."""
    if config.train.compile == "on" or 2 * np.count_nonzero(asked := targets_BT != IGNORE) >= targets_BT.size:
        return None
    return torch.from_numpy(np.flatnonzero(asked)).to(device)


def micro_rows(config: RunConfig, length: int) -> int:
    """Rows of this length in one forward pass; the setting counts rows of a whole block."""
    whole = config.train.micro_batch or config.train.batch_size
    return max(1, whole * config.model.block_size // length)


def cuts(rows: int, most: int, workers: int) -> list[tuple[int, int]]:
    """(first, last) of near-equal parts with at most ``most`` rows, as many for each worker as for any other."""
    parts = math.ceil(math.ceil(rows / most) / workers) * workers
    edges = [rows * i // min(parts, rows) for i in range(min(parts, rows) + 1)]
    return list(pairwise(edges))


@torch.inference_mode()
def evaluate_batch(
    model: GPT, batch: Batch, placement: Placement, pool: WorkerPool, *, exact: bool, carried: Carried | None = None
) -> tuple[float, int]:
    """Sum of the loss in nats, and, if ``exact``, rows whose every target is the model's first choice.

    Args:
        carried: what stood before each row; it goes on with them.
    """
    model.eval()
    if carried is not None:
        carried.begin(batch.reset_B)
    tokens_BT, targets_BT, documents_BT = to_device(batch, placement.device)
    # As many rows at once as keep the logits below 2^25 elements (128 MiB): a vocabulary of 50,257 needs the bound.
    most = max(1, 2**25 // (tokens_BT.shape[1] * model.config.vocabulary))

    def score(part: tuple[int, int]) -> tuple[float, int]:
        tokens, targets = tokens_BT[slice(*part)], targets_BT[slice(*part)]
        documents = None if documents_BT is None else documents_BT[slice(*part)]
        with torch.inference_mode(), placement.autocast():
            carry = None if carried is None else carried.of(slice(*part), tokens.shape[1])
            logits_BTV = model(tokens, documents_BT=documents, carry=carry)
            if carry is not None:
                carry.keep()
        with torch.inference_mode():
            loss_sum, right = cross_entropy_sum(logits_BTV, targets).item(), 0
            if exact:
                right_BT = (logits_BTV.argmax(dim=-1) == targets) | (targets == IGNORE)
                right = int(right_BT.all(dim=1).sum())
        return loss_sum, right

    scores = pool.map(score, cuts(tokens_BT.shape[0], most, pool.count))
    return sum(loss for loss, _ in scores), sum(right for _, right in scores)


def token_losses(
    model: GPT, tokens_BT: np.ndarray, targets_BT: np.ndarray, placement: Placement, *, carried: Carried | None = None
) -> np.ndarray:
    """Loss in nats of every target, (B, T) float64; see ``evaluate_batch``."""
    model.eval()
    found: list[np.ndarray] = []
    T = tokens_BT.shape[1]
    most = max(1, 2**25 // (T * max(model.config.vocabulary, T)))  # scores of a masked layer are T x T for each head
    for start in range(0, len(tokens_BT), most):
        part = slice(start, min(start + most, len(tokens_BT)))
        tokens, targets = (
            torch.from_numpy(np.ascontiguousarray(t[part], dtype=np.int64)).to(placement.device)
            for t in (tokens_BT, targets_BT)
        )
        with torch.inference_mode():
            carry = None if carried is None else carried.of(part, T)
            with placement.autocast():
                logits_BTV = model(tokens, carry=carry)
            if carry is not None:
                carry.keep()
            losses_BT = F.cross_entropy(logits_BTV.float().mT, targets, reduction="none")
        found.append(losses_BT.double().cpu().numpy())
    return np.concatenate(found)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and documents as tensors; on a GPU the copy does not wait."""

    def move(array: np.ndarray) -> Tensor:
        # Inputs and targets are two views of one window; a strided copy to a GPU would wait in spite of pinning.
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    documents = None if batch.documents_BT is None else move(batch.documents_BT)
    return move(batch.tokens_BT), move(batch.targets_BT), documents


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

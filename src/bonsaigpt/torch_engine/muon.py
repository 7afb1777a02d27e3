"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The update of a matrix is the nearest semi-orthogonal matrix to its Nesterov momentum, so every direction moves by the
same amount. Matrices of one shape are worked off as one batch, and the maps stacked in one matrix (queries, keys,
values) each by themselves. torch.optim.Muon does one matrix at a time, whole, and always in bfloat16, which a CPU
without instructions for it emulates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bonsaigpt.config import MuonMatrices
from bonsaigpt.polar import SAFETY, Quintic, rounds
from bonsaigpt.torch_engine.profiling import mark
from bonsaigpt.torch_engine.workers import WorkerPool

__all__ = ["Matrix", "Muon", "gradient_of", "number_format", "orthogonalize", "silence_", "size_factor"]


def orthogonalize(stack_NIJ: Tensor, iterations: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of each of N matrices near one by Newton-Schulz iterations in ``dtype``."""
    tall = stack_NIJ.shape[1] > stack_NIJ.shape[2]
    x = stack_NIJ.mT if tall else stack_NIJ
    x = (x / (x.norm(dim=(1, 2), keepdim=True) * SAFETY + 1e-7)).to(dtype)
    for quintics in rounds(iterations, (x.shape[1], x.shape[2]), single=dtype == torch.float32):
        x = _compose(quintics, x)
    x = x.to(stack_NIJ.dtype)
    return x.mT if tall else x


def _compose(quintics: Sequence[Quintic], x: Tensor) -> Tensor:
    """One quintic of the singular values after the other. With A = X X^T a step is X <- P X, P = a I + b A + c A^2,
    and A <- P A P is a polynomial of the first A: X itself, the long side, is multiplied only at the end."""
    gram = x @ x.mT
    total: Tensor | None = None
    for i, (a, b, c) in enumerate(quintics):
        power = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        power.diagonal(dim1=1, dim2=2).add_(a)
        total = power if total is None else power @ total
        if i + 1 < len(quintics):
            gram = power @ gram @ power
    assert total is not None
    return total @ x


@dataclass(frozen=True)
class Matrix:
    """One map to update: rows ``first`` to ``last`` of a parameter."""

    name: str
    parameter: Tensor
    first: int
    last: int
    lr_scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs) and columns (inputs)."""
        return self.last - self.first, self.parameter.shape[1]

    def lying(self, tensor: Tensor) -> Tensor:
        """A view of a tensor of this shape, no higher than wide."""
        return tensor.mT if self.shape[0] > self.shape[1] else tensor


class Muon:
    """The optimizer of the matrices inside blocks."""

    def __init__(self, matrices: Sequence[Matrix], config: MuonMatrices, pool: WorkerPool) -> None:
        self.config, self.pool = config, pool
        shapes: dict[tuple[int, int], list[Matrix]] = {}
        for matrix in matrices:
            shapes.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
        # A batch for each worker: the matrices of one shape, lying or upright, are dealt out as evenly as they go.
        self._batches: list[list[Matrix]] = []
        for group in shapes.values():
            size = math.ceil(len(group) / pool.count)
            self._batches += [group[i : i + size] for i in range(0, len(group), size)]
        self._momenta = [
            torch.zeros(len(b), min(b[0].shape), max(b[0].shape), device=b[0].parameter.device) for b in self._batches
        ]

    def step(self, share: float, keep: Tensor) -> None:
        """Update at ``share`` of the peak rate if ``keep`` (a scalar on the device) is 1; if it is 0 change nothing."""

        def update(batch: int) -> None:
            with mark("optimizer"):
                self._update(batch, share, keep)

        self.pool.map(update, range(len(self._batches)))

    @torch.no_grad()  # in the worker: each thread has this mode to itself
    def _update(self, index: int, share: float, keep: Tensor) -> None:
        config, batch, momentum = self.config, self._batches[index], self._momenta[index]
        gradients = silence_(torch.stack([m.lying(gradient_of(m)[m.first : m.last]) for m in batch]).float(), keep)
        momentum.lerp_(gradients, (1.0 - config.momentum) * keep)
        updates = orthogonalize(gradients.lerp_(momentum, config.momentum), config.iterations, number_format(config))
        for matrix, update in zip(batch, updates, strict=True):
            weight = matrix.lying(matrix.parameter[matrix.first : matrix.last])
            rate = config.lr * matrix.lr_scale * share
            if config.weight_decay:
                weight.mul_(1.0 - rate * config.weight_decay * keep)
            weight.addcmul_(update.to(weight.dtype), keep.to(weight.dtype), value=-rate * size_factor(*matrix.shape))

    def names(self) -> list[str]:
        """Parameters that are updated here."""
        return list(dict.fromkeys(matrix.name for matrix, _ in self._each()))

    def arrays(self) -> dict[str, Tensor]:
        """The momentum of each parameter, whole, under the parameter's name."""
        parts: dict[str, list[Tensor]] = {}
        for matrix, momentum in self._each():
            parts.setdefault(matrix.name, []).append(matrix.lying(momentum))
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def load(self, momenta: dict[str, Tensor]) -> None:
        """Put back what ``arrays`` gave."""
        for matrix, momentum in self._each():
            momentum.copy_(matrix.lying(momenta[matrix.name][matrix.first : matrix.last]))

    def _each(self) -> list[tuple[Matrix, Tensor]]:
        """Every matrix with its momentum, the maps of one parameter in the order of their rows."""
        pairs = [
            (m, momentum)
            for batch, momenta in zip(self._batches, self._momenta, strict=True)
            for m, momentum in zip(batch, momenta, strict=True)
        ]
        return sorted(pairs, key=lambda pair: pair[0].first)


def number_format(config: MuonMatrices) -> torch.dtype:
    """Of the iterations. What was left open is float32; the engine decides before a run begins."""
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def size_factor(rows: int, columns: int) -> float:
    """What the update of a map is multiplied by: one from ``columns`` inputs to ``rows`` outputs keeps the size of its
    activations if its spectral norm goes as sqrt(rows / columns) (Bernstein 2025), so one rate serves all shapes."""
    return math.sqrt(max(1.0, rows / columns))


def gradient_of(matrix: Matrix) -> Tensor:
    """The gradient of the parameter that a matrix is part of; zeros if the last pass did not reach it."""
    gradient = matrix.parameter.grad
    return torch.zeros_like(matrix.parameter) if gradient is None else gradient


def silence_(gradient: Tensor, keep: Tensor) -> Tensor:
    """The gradient as it is if ``keep`` is 1, zeros if it is 0; in place.

    A gradient that is skipped may hold NaN, and 0 * NaN is NaN. torch.where would do in five times the time.
    """
    return gradient.nan_to_num_(0.0, 0.0, 0.0).mul_(keep)

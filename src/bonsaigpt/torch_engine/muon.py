"""Muon: momentum, orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The update of a matrix is the nearest semi-orthogonal matrix to its Nesterov momentum, so every direction moves by the
same amount. Matrices of one shape are worked off as one batch, and the maps stacked in one matrix (queries, keys,
values) each by themselves. torch.optim.Muon does one matrix at a time, whole, in bfloat16, which is emulated on a CPU
without bf16 instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bonsaigpt.config import MuonMatrices
from bonsaigpt.torch_engine.profiling import mark
from bonsaigpt.torch_engine.workers import WorkerPool

__all__ = ["Matrix", "Muon", "gradient_of", "orthogonalize", "size_factor"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 (Jordan et al. 2024): steep at zero, and values end within 0.7 to 1.2."""


def orthogonalize(stack_NIJ: Tensor, iterations: int) -> Tensor:
    """Bring all singular values of each of N matrices near one by Newton-Schulz iterations.

    Wide or tall, the iteration runs on the smaller side: with A = X X^T the quintic step is X <- P X with
    P = a I + b A + c A^2, and A <- P A P stays a polynomial of the first A, so X is multiplied only once, at the end.
    """
    a, b, c = COEFFICIENTS
    x = stack_NIJ.transpose(1, 2) if stack_NIJ.shape[1] > stack_NIJ.shape[2] else stack_NIJ
    # bf16 is exact enough and far faster where there are instructions for it; elsewhere it would be emulated.
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = x.shape[1] * 2 > x.shape[2]
    gram = x @ x.mT
    total: Tensor | None = None
    for i in range(iterations):
        power = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        if square:
            x = torch.baddbmm(x, power, x, beta=a)
            gram = x @ x.mT if i + 1 < iterations else gram
            continue
        power.diagonal(dim1=1, dim2=2).add_(a)
        total = power if total is None else power @ total
        if i + 1 < iterations:
            gram = power @ gram @ power
    if total is not None:
        x = total @ x
    x = x.to(stack_NIJ.dtype)
    return x.transpose(1, 2) if stack_NIJ.shape[1] > stack_NIJ.shape[2] else x


@dataclass(frozen=True)
class Matrix:
    """One map to update: rows ``first`` to ``last`` of a parameter."""

    name: str
    parameter: Tensor
    first: int
    last: int
    lr_scale: float


class Muon:
    """The optimizer of the matrices inside blocks."""

    def __init__(self, matrices: Sequence[Matrix], config: MuonMatrices, pool: WorkerPool) -> None:
        self.config, self.pool = config, pool
        shapes: dict[tuple[int, int], list[Matrix]] = {}
        for matrix in matrices:
            shapes.setdefault((matrix.last - matrix.first, matrix.parameter.shape[1]), []).append(matrix)
        # A batch for each worker: the matrices of one shape are dealt out as evenly as they go.
        self._batches: list[list[Matrix]] = []
        for group in shapes.values():
            size = math.ceil(len(group) / pool.count)
            self._batches += [group[i : i + size] for i in range(0, len(group), size)]
        self._momenta = [
            torch.zeros(len(b), b[0].last - b[0].first, b[0].parameter.shape[1], device=b[0].parameter.device)
            for b in self._batches
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
        gradients = torch.stack([gradient_of(m)[m.first : m.last] for m in batch]).float()
        gradients = torch.where(keep > 0, gradients, 0.0)  # a skipped gradient may hold NaN, and 0 * NaN is NaN
        momentum.lerp_(gradients, (1.0 - config.momentum) * keep)
        updates = orthogonalize(gradients.lerp(momentum, config.momentum), config.iterations)
        rows, columns = updates.shape[1:]
        rate = config.lr * share * size_factor(rows, columns)
        for matrix, update in zip(batch, updates, strict=True):
            weight = matrix.parameter[matrix.first : matrix.last]
            if config.weight_decay:
                weight.mul_(1.0 - config.lr * matrix.lr_scale * share * config.weight_decay * keep)
            weight.addcmul_(update.to(weight.dtype), keep.to(weight.dtype), value=-rate * matrix.lr_scale)

    def names(self) -> list[str]:
        """Parameters that are updated here."""
        return list(dict.fromkeys(matrix.name for matrix, _ in self._each()))

    def arrays(self) -> dict[str, Tensor]:
        """The momentum of each parameter, whole, under the parameter's name."""
        parts: dict[str, list[Tensor]] = {}
        for matrix, momentum in self._each():
            parts.setdefault(matrix.name, []).append(momentum)
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def load(self, momenta: dict[str, Tensor]) -> None:
        """Put back what ``arrays`` gave."""
        for matrix, momentum in self._each():
            momentum.copy_(momenta[matrix.name][matrix.first : matrix.last])

    def _each(self) -> list[tuple[Matrix, Tensor]]:
        """Every matrix with its momentum, the maps of one parameter in the order of their rows."""
        pairs = [
            (m, momentum)
            for batch, momenta in zip(self._batches, self._momenta, strict=True)
            for m, momentum in zip(batch, momenta, strict=True)
        ]
        return sorted(pairs, key=lambda pair: pair[0].first)


def size_factor(rows: int, columns: int) -> float:
    """What the update of a map is multiplied by: one from ``columns`` inputs to ``rows`` outputs keeps the size of its
    activations if its spectral norm goes as sqrt(rows / columns) (Bernstein 2025), so one rate serves all shapes."""
    return math.sqrt(max(1.0, rows / columns))


def gradient_of(matrix: Matrix) -> Tensor:
    """The gradient of the parameter that a matrix is part of; zeros if the last pass did not reach it."""
    gradient = matrix.parameter.grad
    return torch.zeros_like(matrix.parameter) if gradient is None else gradient

"""Muon: momentum, orthogonalised (Jordan et al. 2024); see ``torch_engine/muon.py`` for where the numbers are from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from bonsaigpt.config import MuonMatrices
from bonsaigpt.spec import Param

__all__ = ["orthogonalize", "step"]

_SAFETY = 1.01
"""Room for rounding: singular values a hundredth over one would otherwise grow."""
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
COEFFICIENTS = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS)
"""Of the quintics a x + b x^3 + c x^5, one for each iteration (Amsel et al. 2025, https://arxiv.org/abs/2505.16932)."""
_GRAM = 4
"""Iterations on the small side alone: its rounding errors grow with the square of the slopes, 0.02 after four."""


def step(
    config: MuonMatrices,
    params: Sequence[Param],
    scales: Sequence[float],
    weights: Sequence[Array],
    gradients: Sequence[Array],
    momenta: Sequence[Array],
    share: Array,
) -> tuple[list[Array], list[Array]]:
    """The matrices and their momenta after an update at ``share`` of the peak rate; ``scales`` are factors on it."""
    momenta = [m + (1.0 - config.momentum) * (g - m) for m, g in zip(momenta, gradients, strict=True)]
    nesterov = [g + config.momentum * (m - g) for m, g in zip(momenta, gradients, strict=True)]
    # The maps stacked in one matrix (queries, keys, values) each by themselves; those of one shape, lying or upright,
    # as one batch.
    maps: dict[tuple[int, ...], list[tuple[int, int, Array]]] = {}
    for index, (p, update) in enumerate(zip(params, nesterov, strict=True)):
        ends = np.cumsum(p.stacked or p.shape[:1])
        for place, part in enumerate(jnp.split(update, ends[:-1].tolist())):
            lying = part.T if part.shape[0] > part.shape[1] else part
            maps.setdefault(lying.shape, []).append((index, place, lying))
    dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
    parts: dict[int, dict[int, Array]] = {}
    for group in maps.values():
        made = orthogonalize(jnp.stack([lying for _, _, lying in group]), config.iterations, dtype)
        for (index, place, _), update in zip(group, made, strict=True):
            parts.setdefault(index, {})[place] = update
    found: list[Array] = []
    for index, (p, weight, scale) in enumerate(zip(params, weights, scales, strict=True)):
        rate = config.lr * scale * share
        updates: list[Array] = []
        for place, rows in enumerate(p.stacked or p.shape[:1]):
            update = parts[index][place]
            update = update.T if rows > p.shape[1] else update
            updates.append(update * math.sqrt(max(1.0, rows / p.shape[1])))
        found.append(weight * (1.0 - rate * config.weight_decay) - rate * jnp.concatenate(updates).astype(weight.dtype))
    return found, momenta


def orthogonalize(stack_NIJ: Array, iterations: int, dtype: type = jnp.float32) -> Array:
    """Bring all singular values of each of N matrices, no higher than wide, near one by Newton-Schulz iterations."""
    x = (stack_NIJ / (jnp.linalg.norm(stack_NIJ, axis=(1, 2), keepdims=True) * _SAFETY + 1e-7)).astype(dtype)
    quintics = [COEFFICIENTS[min(i, len(COEFFICIENTS) - 1)] for i in range(iterations)]
    at_once = _GRAM if x.shape[1] * 2 <= x.shape[2] and dtype == jnp.float32 else 1
    for first in range(0, iterations, at_once):
        x = _compose(quintics[first : first + at_once], x)
    return x.astype(stack_NIJ.dtype)


def _compose(quintics: Sequence[tuple[float, float, float]], x: Array) -> Array:
    """One quintic of the singular values after the other, on the small side; X itself is multiplied only at the end."""
    gram = x @ x.mT
    one = jnp.eye(gram.shape[1], dtype=gram.dtype)
    total = one
    for a, b, c in quintics:
        power = a * one + b * gram + c * (gram @ gram)
        total = power @ total
        gram = power @ gram @ power
    return total @ x

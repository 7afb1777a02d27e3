"""Muon: momentum, orthogonalised (Jordan et al. 2024); see ``torch_engine/muon.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from bonsaigpt.config import MuonMatrices
from bonsaigpt.polar import SAFETY, Quintic, rounds
from bonsaigpt.spec import Param

__all__ = ["orthogonalize", "step"]


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
    x = (stack_NIJ / (jnp.linalg.norm(stack_NIJ, axis=(1, 2), keepdims=True) * SAFETY + 1e-7)).astype(dtype)
    for quintics in rounds(iterations, (x.shape[1], x.shape[2]), single=dtype == jnp.float32):
        x = _compose(quintics, x)
    return x.astype(stack_NIJ.dtype)


def _compose(quintics: Sequence[Quintic], x: Array) -> Array:
    """One quintic of the singular values after the other, on the small side; X itself is multiplied only at the end."""
    gram = x @ x.mT
    one = jnp.eye(gram.shape[1], dtype=gram.dtype)
    total = one
    for a, b, c in quintics:
        power = a * one + b * gram + c * (gram @ gram)
        total = power @ total
        gram = power @ gram @ power
    return total @ x

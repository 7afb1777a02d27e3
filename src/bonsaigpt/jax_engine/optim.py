"""The optimizer of a run: optax's Adam with decay and rates from the spec's table, perhaps Muon, and an average of the
weights. Weights are flat dictionaries here, by their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bonsaigpt.config import MuonMatrices, RunConfig
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.jax_engine import muon
from bonsaigpt.spec import Param, parameters

__all__ = ["Flat", "Moments", "arrays", "clip", "fresh", "load", "trained", "update"]

Flat = dict[str, Array]


@partial(jax.tree_util.register_dataclass, data_fields=["adam", "momentum", "average"], meta_fields=[])
@dataclass(frozen=True)
class Moments:
    """What the optimizer remembers."""

    adam: Any
    """optax's ScaleByAdamState."""
    momentum: Flat
    """Of the matrices that Muon updates."""
    average: Flat
    """Of the weights, where the run keeps one; else empty."""


def trained(config: RunConfig, weights: Flat) -> tuple[Flat, Flat]:
    """The weights that change, and those that ``lr_scale`` freezes: of these no gradient is computed.

    Raises:
        ConfigError: nothing is left to train.
    """
    moving = {name: w for name, w in weights.items() if config.optim.scale_of(name) > 0}
    if not moving:
        raise ConfigError("optim.lr_scale freezes every parameter: give some of them a factor above 0")
    return moving, {name: w for name, w in weights.items() if name not in moving}


def fresh(config: RunConfig, weights: Flat) -> Moments:
    """The state before the first step."""
    by_muon, moving = _by_muon(config), trained(config, weights)[0]
    return Moments(
        adam=_adam(config).init({name: w for name, w in moving.items() if name not in by_muon}),
        momentum={name: jnp.zeros_like(weights[name]) for name in by_muon},
        average={name: jnp.array(w) for name, w in weights.items()} if config.optim.ema else {},
    )


def clip(config: RunConfig, gradients: Flat) -> tuple[Flat, Array]:
    """The gradients with at most the configured global norm, and the norm before; by torch's formula."""
    norm = jnp.sqrt(sum((jnp.sum(g**2) for g in gradients.values()), start=jnp.zeros(())))
    if not (limit := config.optim.grad_clip):
        return gradients, norm
    factor = jnp.minimum(limit / (norm + 1e-6), 1.0)
    return {name: g * factor for name, g in gradients.items()}, norm


def update(
    config: RunConfig, weights: Flat, gradients: Flat, moments: Moments, *, share: Array, keep: Array
) -> tuple[Flat, Moments]:
    """The weights after a step at ``share`` of the peak rates; all as it was where ``keep`` is False. ``gradients`` are
    of the weights that are ``trained``."""
    optim, by_muon = config.optim, _by_muon(config)
    mine = {name: g for name, g in gradients.items() if name not in by_muon}
    steps, adam = _adam(config).update(mine, moments.adam)
    after = dict(weights)
    for p in _table(config):
        if p.name in steps:
            rate = optim.lr * p.lr_scale * optim.scale_of(p.name) * share
            shrunk = weights[p.name] * (1.0 - rate * optim.weight_decay * p.decay)
            after[p.name] = shrunk - rate * steps[p.name]
    momentum = moments.momentum
    if isinstance(optim.matrices, MuonMatrices):
        matrices = [p for p in _table(config) if p.name in by_muon]
        of = lambda table: [table[p.name] for p in matrices]  # noqa: E731
        scales = [optim.scale_of(p.name) for p in matrices]
        changed, moved = muon.step(optim.matrices, matrices, scales, of(weights), of(gradients), of(momentum), share)
        after |= {p.name: w for p, w in zip(matrices, changed, strict=True)}
        momentum = {p.name: m for p, m in zip(matrices, moved, strict=True)}
    average = {name: a + (1.0 - optim.ema) * (after[name] - a) for name, a in moments.average.items()}
    new = {name: after[name] for name in weights}, Moments(adam, momentum, average)
    return jax.tree.map(lambda new, old: jnp.where(keep, new, old), new, (weights, moments))


def arrays(weights: Flat, moments: Moments) -> Flat:
    """All by the names that the PyTorch engine gives them; empty before the first step."""
    if int(moments.adam.count) == 0:
        return {}
    named: Flat = {"steps": moments.adam.count.astype(jnp.float32)}
    for name, tree in (("exp_avg", moments.adam.mu), ("exp_avg_sq", moments.adam.nu), ("momentum", moments.momentum)):
        named |= {f"{name}.{weight}": value for weight, value in tree.items()}
    if moments.average:
        named |= {f"weight.{weight}": value for weight, value in weights.items()}
    return named


def load(moments: Moments, weights: Flat, saved: Mapping[str, np.ndarray]) -> tuple[Flat, Moments]:
    """Weights and state as they were saved. The weights given are the saved ones; they become the average, if one is
    kept.

    Raises:
        CheckpointError: the state lacks something.
    """
    if not saved:
        return weights, moments

    def filled(prefix: str, like: Flat) -> Flat:
        found: Flat = {}
        for name, value in like.items():
            was = saved.get(f"{prefix}.{name}")
            if was is None or was.shape != value.shape:
                raise CheckpointError(f"the optimizer's state lacks {prefix}.{name}: start afresh with --init instead")
            found[name] = jnp.asarray(was)
        return found

    count = jnp.asarray(saved.get("steps", 0.0)).astype(jnp.int32)
    adam = moments.adam._replace(
        count=count, mu=filled("exp_avg", moments.adam.mu), nu=filled("exp_avg_sq", moments.adam.nu)
    )
    moments = replace(moments, adam=adam, momentum=filled("momentum", moments.momentum))
    if moments.average and f"weight.{next(iter(weights))}" in saved:
        weights = filled("weight", weights)
    return weights, moments


def _adam(config: RunConfig) -> Any:
    return optax.scale_by_adam(config.optim.beta1, config.optim.beta2, config.optim.eps)


def _table(config: RunConfig) -> list[Param]:
    return [p for p in parameters(config.model) if p.tied_to is None]


def _by_muon(config: RunConfig) -> list[str]:
    """Parameters that Muon updates."""
    if not isinstance(config.optim.matrices, MuonMatrices):
        return []
    return [p.name for p in _table(config) if p.role == "matrix" and config.optim.scale_of(p.name) > 0]

"""All that a step computes, level by level; see ``torch_engine/observing.py``."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from bonsaigpt.config import RunConfig
from bonsaigpt.jax_engine.loss import loss
from bonsaigpt.jax_engine.model import Params, flat, logits, nested
from bonsaigpt.jax_engine.optim import Flat, trained
from bonsaigpt.jax_engine.step import Rows

__all__ = ["observe"]


def observe(config: RunConfig, params: Params, rows: Rows, count: Array) -> dict[str, dict[str, Array]]:
    """From activations to gradients, as ``trace.Observed`` has them; ``rows`` are not cut."""

    moving, frozen = trained(config, flat(params))

    def objective(moving: Flat) -> tuple[Array, Any]:
        seen: dict[str, Array] = {}
        params = nested(config.model, moving | frozen)
        objective, summed = loss(config.model, params, rows.tokens, rows.targets, z_loss=config.optim.z_loss, seen=seen)
        return objective / count, (summed / count, seen)

    gradient, (mean, seen) = jax.grad(objective, has_aux=True)(moving)
    return {
        "activations": seen,
        "logits": {"logits": logits(config.model, params, seen["transformer.ln_f"])},
        "loss": {"loss": mean},
        "gradients": gradient,
    }

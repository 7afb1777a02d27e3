"""What int8 keeps of a model: one scale for each output channel."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bonsaigpt.jax_engine.model import Model, flat, nested
from bonsaigpt.spec import parameters
from bonsaigpt.structure import merge

__all__ = ["rounded"]


def rounded(model: Model) -> Model:
    """A copy whose maps hold what int8 keeps of them; a tied head becomes one of its own, and factors the matrix that
    they stand for."""
    config, values = merge(model.config, {name: np.asarray(w) for name, w in flat(model.params).items()})
    values.setdefault("lm_head.weight", values["transformer.wte.weight"])
    config = config.model_copy(update={"tie_embeddings": False})
    for p in parameters(config):
        if p.role in ("matrix", "head"):
            weight = values[p.name]
            scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(1e-30)) / np.float32(127)
            values[p.name] = np.clip(np.round(weight / scales), -127, 127) * scales
    return Model(config, nested(config, {name: jnp.asarray(values[name]) for name in values}))

"""What int8 keeps of a model, one scale for each output channel, and int4, one for every 32 inputs."""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np

from bonsaigpt.jax_engine.model import Model, flat, nested
from bonsaigpt.jax_engine.sharding import place, whole
from bonsaigpt.spec import parameters
from bonsaigpt.structure import merge

__all__ = ["rounded"]


def rounded(model: Model, weights: Literal["int8", "int4"] = "int8") -> Model:
    """A copy whose maps hold what int8 or int4 keeps of them; a tied head becomes one of its own, and factors the
    matrix that they stand for."""
    config, values = merge(model.config, {name: np.asarray(w) for name, w in flat(model.params).items()})
    values.setdefault("lm_head.weight", values["transformer.wte.weight"])
    config = config.model_copy(update={"tie_embeddings": False})
    for p in parameters(config):
        if p.role in ("matrix", "head"):
            weight = values[p.name]
            if weights == "int4":
                values[p.name] = _int4(weight)
                continue
            scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(1e-30)) / np.float32(127)
            values[p.name] = np.clip(np.round(weight / scales), -127, 127) * scales
    mesh = jax.tree.leaves(model.params)[0].sharding.mesh
    return Model(config, place(nested(config, values), whole(mesh)))


def _int4(weight: np.ndarray) -> np.ndarray:
    """See ``quantize_int4`` of torch_engine/rounding.py."""
    groups = np.pad(weight, ((0, 0), (0, -weight.shape[1] % 32))).reshape(len(weight), -1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
    scales = largest / np.float32(-8)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    q = np.clip(np.floor(groups * inverse + np.float32(8.5)), 0, 15) - np.float32(8)
    return (q * scales.astype(np.float16).astype(np.float32)).reshape(len(weight), -1)[:, : weight.shape[1]]

"""A longer context for a trained model: new angles or interpolated positions, and a few steps at the new length.

Rotary positions go on as they are, or are scaled by position interpolation (Chen et al. 2023), a larger base (NTK), or
YaRN (Peng et al. 2023). Learned positions are interpolated along their rows, and the optimizer's moments with them, so
that the optimizer goes on as well. The work of a step stays: as many times fewer rows as they are longer.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from bonsaigpt.adapt.training import trained_on
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RopePosition, RunConfig, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.structure import structures

__all__ = ["RopeKind", "fitted_arrays", "stretched_arrays", "stretched_config", "stretched_model"]

RopeKind = Literal["linear", "ntk", "yarn"]
_LEARNED = "transformer.wpe.weight"
_MEMORY = "memory."


def stretched_model(model: ModelConfig, block_size: int, rope: RopeKind | None = None) -> ModelConfig:
    """The model at a longer context.

    Args:
        rope: how rotary positions are scaled; none: as they are scaled now, or not at all.

    Raises:
        ConfigError: it is no longer than before; or there is nothing to scale; or the model knows the position in a way
            that cannot be stretched.
    """
    if block_size <= model.block_size:
        raise ConfigError(
            f"the model reads {model.block_size} tokens already: give a longer --block-size than {model.block_size}"
        )
    position = model.position
    if isinstance(position, RopePosition):
        scaling = position.scaling
        before = 1.0 if scaling.kind == "none" else scaling.factor
        kind = rope or scaling.kind
        changes: dict[str, Any] = {"kind": kind}
        if kind != "none":
            changes["factor"] = before * block_size / model.block_size
        if kind in ("yarn", "llama3"):
            kept = scaling.model_dump(include={"original", "fast", "slow"}) if scaling.kind == kind else {}
            changes |= {"original": round(model.block_size / before)} | kept
        return _with(model, block_size, {"position": position.model_dump() | {"scaling": changes}})
    if rope is not None:
        raise ConfigError(
            f"--rope scales rotary positions, and model.position.kind is '{position.kind}' here: leave it out"
        )
    if position.kind == "learned" and structures(model)[_LEARNED].factored:
        raise ConfigError(f"{_LEARNED} is made of factors, whose rows cannot be interpolated: merge it first")
    return _with(model, block_size, {})


def _with(model: ModelConfig, block_size: int, changes: dict[str, Any]) -> ModelConfig:
    data = model.model_dump(exclude_none=True, exclude={"preset"}) | {"block_size": block_size} | changes
    return validate({"model": data}, origin="the stretched model").model


def stretched_config(
    config: RunConfig, block_size: int, *, rope: RopeKind | None = None, steps: int = 100, share: float = 0.5
) -> RunConfig:
    """The run that goes on from a run's weights at a longer context, for so many steps; see ``trained_on``. The tokens
    of a step stay as they were, but for the remainder."""
    model = stretched_model(config.model, block_size, rope)
    rows = max(1, config.train.batch_size * config.model.block_size // block_size)
    return trained_on(config, model=model, steps=steps, share=share, train={"batch_size": rows})


def fitted_arrays(arrays: Arrays, old: ModelConfig, new: ModelConfig) -> Arrays:
    """Weights for another context: learned positions beyond a shorter one are left out, for a longer one they are
    interpolated."""
    if new.position.kind == "learned" and new.block_size < old.block_size:
        return arrays | {_LEARNED: arrays[_LEARNED][: new.block_size]}
    return arrays if new.block_size == old.block_size else stretched_arrays(arrays, old, new)


def stretched_arrays(arrays: Arrays, old: ModelConfig, new: ModelConfig) -> Arrays:
    """Weights, or an optimizer's state, for the longer context: row p of the learned positions lies at row p / factor
    of the old ones, between two of them; beyond the last it is the last. What was carried from batch to batch is left
    out, as it was of other rows; all else stays."""
    arrays = {name: value for name, value in arrays.items() if not name.startswith(_MEMORY)}
    if old.position.kind != "learned":
        return arrays
    places = np.minimum(np.arange(new.block_size) * (old.block_size / new.block_size), old.block_size - 1)
    below = places.astype(np.int64)
    above, part = np.minimum(below + 1, old.block_size - 1), (places - below)[:, None].astype(np.float32)
    return {
        name: (value[below] * (1 - part) + value[above] * part).astype(value.dtype)
        if name.endswith(_LEARNED)
        else value
        for name, value in arrays.items()
    }

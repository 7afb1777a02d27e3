"""A dense MLP made into experts that all begin as it (Komatsuzaki et al. 2022, sparse upcycling): the same function.

Factors that do not reach the hidden units are shared. Of Kronecker products W_e = sum A_er (x) B_r the experts own
their A and share B: a mixture of experts as one Kronecker decomposition. Of a low rank, U V, they own one map and share
the other. Experts of dense matrices share nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bonsaigpt.compress.replace import Compressed
from bonsaigpt.config import KroneckerStructure, ModelConfig, MonarchStructure, StructureConfig, hidden_side, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.structure import Arrays

__all__ = ["experts_config", "upcycle", "upcycled"]


def experts_config(config: ModelConfig, *, experts: int, active: int) -> ModelConfig:
    """The configuration with so many experts in place of every MLP, ``active`` of them for each token.

    Raises:
        ConfigError: the model has experts already, or its structure cannot be parted among them.
    """
    if config.experts > 1:
        raise ConfigError(f"the model has {config.experts} experts already: leave --experts out")
    mlp = {"kind": "moe", "each": config.mlp.model_dump(), "experts": experts, "active": active}
    settings: dict[str, StructureConfig] = dict(config.structure)
    for name in config.weight_shapes:
        setting, side = config.structure_of(name), hidden_side(name)
        if side is not None and isinstance(setting, KroneckerStructure | MonarchStructure):
            a_shape = tuple(size * experts if axis == side else size for axis, size in enumerate(setting.a_shape))
            settings[name] = setting.model_copy(update={"a_shape": a_shape})
    plain = config.model_dump(exclude_none=True) | {"mlp": mlp}
    plain["structure"] = {name: setting.model_dump(exclude_none=True) for name, setting in settings.items()}
    return validate({"model": plain}, origin="--experts").model


def upcycle(
    config: ModelConfig, values: Arrays, *, experts: int, active: int, seed: int = 0
) -> tuple[ModelConfig, Arrays]:
    """The model with so many copies of every MLP; which of them a token meets is up to a router of fresh values.

    Args:
        seed: of the routers, which are all that is new.

    Raises:
        ConfigError: as ``experts_config`` has it.
    """
    made = experts_config(config, experts=experts, active=active)
    found: Arrays = {}
    for p in parameters(made):
        if p.tied_to is not None:
            continue
        old = values.get(p.name)
        found[p.name] = initial_value(p, seed) if old is None else _repeated(old, p.shape)
    return made, found


def upcycled(compressed: Compressed, *, experts: int, active: int, seed: int = 0) -> Compressed:
    """The same for what came of a plan: its losses stand."""
    config, values = upcycle(compressed.config, compressed.values, experts=experts, active=active, seed=seed)
    return replace(compressed, config=config, values=values)


def _repeated(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Copies side by side along the one axis that has grown, the hidden units'; itself if none has."""
    return np.tile(value, [new // old for new, old in zip(shape, value.shape, strict=True)])

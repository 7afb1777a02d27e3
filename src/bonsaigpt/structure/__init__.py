"""What a weight may be made of, one file each: its factors, parameters, operations, rank, and the matrix it stands for.

NumPy only. How an engine applies a structure is the engine's; how good factors are found is ``compress``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bonsaigpt.config import (
    DenseStructure,
    DoraStructure,
    ExpertsMLP,
    KroneckerColumnsStructure,
    KroneckerStructure,
    LokrStructure,
    LoraStructure,
    LowRankStructure,
    ModelConfig,
    MonarchStructure,
    NarrowStructure,
    WeightStructure,
    hidden_side,
)
from bonsaigpt.structure.adapted import Adapted
from bonsaigpt.structure.base import MATERIALISED, Arrays, Factor, Product, Structure
from bonsaigpt.structure.columns import KroneckerColumns
from bonsaigpt.structure.dense import Dense
from bonsaigpt.structure.kronecker import Kronecker
from bonsaigpt.structure.lowrank import LowRank
from bonsaigpt.structure.monarch import Monarch

__all__ = [
    "MATERIALISED",
    "Adapted",
    "Arrays",
    "Dense",
    "Factor",
    "Kronecker",
    "KroneckerColumns",
    "LowRank",
    "Monarch",
    "Product",
    "Structure",
    "at_work",
    "make",
    "merge",
    "structures",
]


def make(setting: WeightStructure, out: int, into: int) -> Structure:
    """The structure that a setting means for a weight of (out, into), for which ``setting.check`` has nothing against
    it: a configuration is checked as a whole when it is made."""
    match setting:
        case KroneckerColumnsStructure():
            return KroneckerColumns(out, into, setting.a_shape, setting.terms, setting.scalers, setting.columns)
        case KroneckerStructure():
            return Kronecker(out, into, setting.a_shape, setting.terms, setting.scalers)
        case LowRankStructure():
            return LowRank(out, into, setting.rank)
        case MonarchStructure():
            return Monarch(out, into, setting.a_shape, setting.rank)
        case LoraStructure():  # DoRA too
            delta = LowRank(out, into, setting.rank)
            return Adapted(out, into, delta, setting.alpha / setting.rank, isinstance(setting, DoraStructure))
        case LokrStructure():
            products = Kronecker(out, into, setting.a_shape, setting.terms, scalers=False)
            return Adapted(out, into, products, setting.alpha / setting.terms)
        case DenseStructure():
            return Dense(out, into)


def structures(config: ModelConfig) -> dict[str, Structure]:
    """What every weight of the model is made of, dense ones included, in the order of the forward pass.

    Raises:
        ConfigError: the size of the vocabulary is not known yet.
    """
    assert config.vocabulary > 0  # it raises
    return {name: make(config.structure_of(name), *shape) for name, shape in config.weight_shapes.items()}


def at_work(config: ModelConfig) -> dict[str, Structure]:
    """What one token is multiplied with: the same, but of experts the active ones alone."""
    made = structures(config)
    if not isinstance(mlp := config.mlp, ExpertsMLP):
        return made

    def part(size: int) -> int:
        return size * mlp.active // mlp.experts

    for name, structure in made.items():
        if (side := hidden_side(name)) is None:
            continue
        changes: dict[str, Any] = {"out": part(structure.out)} if side == 0 else {"into": part(structure.into)}
        if isinstance(structure, Adapted):
            changes["delta"] = replace(structure.delta, **changes)
        made[name] = replace(structure, **changes)
        if isinstance(structure, Kronecker | Monarch):
            m1, n1 = structure.a_shape
            made[name] = replace(made[name], a_shape=(part(m1), n1) if side == 0 else (m1, part(n1)))
    return made


def merge(
    config: ModelConfig, values: Arrays, *, which: Callable[[str, Structure], bool] = lambda name, structure: True
) -> tuple[ModelConfig, Arrays]:
    """The same function with dense weights: the configuration, and every value under its dense name.

    Factors are multiplied in float64. MLPs that were made narrow stay so, and experts do not become one.

    Args:
        which: weights that are to be merged, by name and structure; the others stay factored. All by default.
    """
    rest, merged = dict(values), {}
    settings = dict(config.structure)
    for name, structure in structures(config).items():
        own = {factor.name: rest.pop(factor.key(name)) for factor in structure.factors}
        if structure.factored and which(name, structure):
            wide = structure.expand({factor: value.astype(np.float64) for factor, value in own.items()})
            merged[name] = wide.astype(np.float32)
            settings[name] = DenseStructure()
        else:
            merged |= {factor.key(name): own[factor.name] for factor in structure.factors}
    plain = config.model_copy(update={"structure": settings})
    if not any(structure.factored for structure in structures(plain).values()):
        narrow = {glob: s for glob, s in config.structure.items() if isinstance(s, NarrowStructure)}
        plain = config.model_copy(update={"structure": narrow})
    return plain, merged | rest

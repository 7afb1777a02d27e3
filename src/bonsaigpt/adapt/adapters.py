"""Adapters: small changes beside frozen weights (LoRA, DoRA, LoKr), as structures of the weights that they change.

An adapted model is a model: its weights are ``Adapted`` structures (see ``structure/adapted.py``), so training,
resuming and scoring know nothing of adapters, decoding merges them by itself, and ``merge`` gives the dense model for
good. An adapter's file holds what a tuned model has beyond its base: the changes, what was trained whole beside them
(embedding and head, where tokens were added), and rows that were added to what was not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bonsaigpt.checkpoint import Arrays, check_weights
from bonsaigpt.config import (
    DoraStructure,
    LokrStructure,
    LoraStructure,
    ModelConfig,
    RunConfig,
    WeightStructure,
    validate,
)
from bonsaigpt.data.tokenizers import Tokenizer, from_json
from bonsaigpt.errors import CheckpointError, ConfigError, did_you_mean
from bonsaigpt.files import file_aside
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.structure import Adapted, merge, structures
from bonsaigpt.structure.adapted import BASE

__all__ = [
    "ADAPTERS_ALONE",
    "EMBEDDING_AND_HEAD",
    "AdapterKind",
    "Tuned",
    "adapted_model",
    "adapted_names",
    "merged_model",
    "read_adapter",
    "write_adapter",
]

AdapterKind: TypeAlias = Literal["lora", "dora", "lokr"]

ADAPTERS_ALONE = {"*": 0.0, "*.delta.*": 1.0, "*.magnitude": 1.0}
"""Factors on learning rates that freeze all but adapters."""
EMBEDDING_AND_HEAD = ("transformer.wte.weight", "lm_head.weight")
"""What has a row for each token."""

_FORMAT = "bonsai-adapter-1"
_ROWS = ".rows"
"""Behind the name of a tensor that has the base's rows, and these after them."""


def adapted_names(config: ModelConfig, globs: Sequence[str]) -> list[str]:
    """The weights that globs name, in the order of the forward pass.

    Raises:
        ConfigError: a glob matches no weight, or one that is made of factors already.
    """
    made = structures(config)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in made):
            raise ConfigError(f"'{glob}' matches no weight of this model.{did_you_mean(glob, made)}")
    names = [name for name in made if any(fnmatchcase(name, glob) for glob in globs)]
    if factored := [name for name in names if made[name].factored]:
        raise ConfigError(
            f"{factored[0]} is made of factors already: merge them first (bonsai adapter merge), or leave it out"
        )
    return names


def adapted_model(
    config: ModelConfig, weights: Arrays, names: Sequence[str], kind: AdapterKind, rank: int, *, seed: int
) -> tuple[ModelConfig, Arrays]:
    """The model with fresh adapters of these weights, which change nothing yet.

    Args:
        rank: of LoRA and DoRA; of LoKr the number of Kronecker products, whose sides are as near to square as they can.
    """
    shapes = config.weight_shapes
    settings: dict[str, WeightStructure] = {name: _setting(kind, rank, *shapes[name]) for name in names}
    adapted = _with_structure(config, dict(config.structure) | settings)
    values = dict(weights)
    for name in names:
        values[f"{name}.{BASE}"] = values.pop(name)
    for param in parameters(adapted):
        if param.tied_to is None and param.name not in values:
            values[param.name] = initial_value(param, seed)
    return adapted, values


def _setting(kind: AdapterKind, rank: int, out: int, into: int) -> WeightStructure:
    rank = min(rank, out, into)
    if kind == "lokr":
        a_shape = (_near_root(out), _near_root(into))
        most = min(math.prod(a_shape), out * into // math.prod(a_shape))
        return LokrStructure(a_shape=a_shape, terms=min(rank, most))
    return LoraStructure(rank=rank, alpha=2.0 * rank) if kind == "lora" else DoraStructure(rank=rank, alpha=2.0 * rank)


def _near_root(size: int) -> int:
    """The largest divisor up to the square root."""
    return next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)


def _with_structure(config: ModelConfig, structure: dict[str, Any]) -> ModelConfig:
    settings = {name: s.model_dump() for name, s in structure.items()}
    data = config.model_dump(exclude_none=True, exclude={"preset"}) | {"structure": settings}
    return validate({"model": data}, origin="the adapted model").model


def merged_model(config: ModelConfig, weights: Arrays) -> tuple[ModelConfig, Arrays]:
    """The same function with adapters merged into their weights; other structures stay.

    Raises:
        ConfigError: there are no adapters.
    """
    if not any(isinstance(structure, Adapted) for structure in structures(config).values()):
        raise ConfigError("there are no adapters to merge: the model's weights are as they are")
    return merge(config, weights, which=lambda _, structure: isinstance(structure, Adapted))


# ---------------------------------------------------------------------- files


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A tuned model, as a run that could go on."""

    config: RunConfig
    weights: Arrays
    tokenizer: Tokenizer
    data: str
    """Fingerprint of what it was tuned on."""


def write_adapter(path: Path, tuned: Tuned, base: Arrays, *, label: str) -> int:
    """Write what a tuned model has beyond its base; the bytes of the file.

    Args:
        base: weights of the model that was tuned.
        label: its address, for whoever reads the file.

    Raises:
        CheckpointError: they are not the base of this model: what was frozen has other values.
        OutputError: the file cannot be written.
    """
    beyond: Arrays = {}
    for name, value in tuned.weights.items():
        old = base.get(name.removesuffix(f".{BASE}"))
        if old is None or tuned.config.optim.scale_of(name) > 0:  # an adapter's, or trained whole
            beyond[name] = value
            continue
        same = value[: len(old)]
        if same.shape != old.shape or not np.array_equal(same, old):
            raise CheckpointError(f"{name} is not as {label} has it: adapters are kept apart only from their own base")
        if len(value) > len(old):
            beyond[name + _ROWS] = value[len(old) :]
    about = {
        "format": _FORMAT,
        "config": tuned.config.model_dump_json(exclude_none=True),
        "tokenizer": tuned.tokenizer.to_json(),
        "data": tuned.data,
        "base": label,
        "base_sha256": _digest(base),
    }
    with file_aside(path) as aside:
        save_file({name: np.ascontiguousarray(value) for name, value in beyond.items()}, aside, metadata=about)
    return path.stat().st_size


def read_adapter(path: Path, base: Arrays) -> Tuned:
    """The tuned model, of its base and a file.

    Raises:
        CheckpointError: no adapter's file, damaged, or of another base.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            beyond = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not an adapter's file ({error})") from None
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not an adapter's file: write one with bonsai adapter save")
    if about["base_sha256"] != _digest(base):
        raise CheckpointError(f"{path} was trained on other weights, those of {about['base']}: apply it to these")
    try:
        config = validate(json.loads(about["config"]), origin=str(path))
        tokenizer = from_json(about["tokenizer"], origin=str(path))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy it again") from None
    weights, made = dict(beyond), structures(config.model)
    for name, value in base.items():
        key = f"{name}.{BASE}" if isinstance(made.get(name), Adapted) else name
        if key in weights:
            continue
        rows = weights.pop(key + _ROWS, None)
        weights[key] = value if rows is None else np.concatenate([value, rows])
    check_weights(weights, config.model, origin=str(path))
    return Tuned(config=config, weights=weights, tokenizer=tokenizer, data=about["data"])


def _digest(weights: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()

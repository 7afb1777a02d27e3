"""A plan on paper: what each weight becomes, as a file that people edit and programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from bonsaigpt.config import ModelConfig, NarrowStructure, RunConfig, StructureConfig, derive, load_toml, validate
from bonsaigpt.errors import ConfigError, did_you_mean
from bonsaigpt.files import write_text

__all__ = ["INITS", "Init", "Plan", "block_of", "blocks_of", "is_map", "read_plan", "write_plan"]

Init: TypeAlias = Literal["activations", "distilled", "weight", "pruned", "random"]
INITS: tuple[Init, ...] = get_args(Init)
"""Where the factors come from; docs/kronecker.md tells what each is."""

_HEAD = """# A plan of `bonsai compress`. [structure] is what model.structure is: names or globs, the last match wins.
# init: %s. permute: bring like hidden units together before the fit.
"""


@dataclass(frozen=True)
class Plan:
    """What is to be made of a model."""

    structure: Mapping[str, StructureConfig]
    init: Init = "activations"
    permute: bool = False
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Nats that each weight or MLP is predicted to cost before healing, by name; empty where nobody has predicted."""

    def applied(self, config: RunConfig) -> RunConfig:
        """The configuration of the compressed run.

        Raises:
            ConfigError: a structure does not fit, or a name matches nothing.
        """
        old = config.model.model_dump(exclude_none=True)["structure"]
        new = {name: setting.model_dump(exclude_none=True) for name, setting in self.structure.items()}
        # Entries of the plan come last, so that they win.
        return derive(config, model={"structure": {k: v for k, v in old.items() if k not in new} | new})


def blocks_of(config: ModelConfig, changed: Sequence[str]) -> list[list[str]]:
    """The weights that are replaced together, in the order of the forward pass: those of one branch of a layer."""
    blocks: dict[str, list[str]] = {}
    for name in config.weight_shapes:
        if name in changed:
            blocks.setdefault(block_of(name), []).append(name)
    return list(blocks.values())


def is_map(config: ModelConfig, name: str) -> bool:
    """Whether a weight is multiplied with activations, and not only looked up."""
    return name.startswith("transformer.h.") or name == config.head


def block_of(name: str) -> str:
    """``transformer.h.0.mlp`` of its weights; of others the name without ``.weight``."""
    stem = name.removesuffix(".weight")
    return stem.rpartition(".")[0] if stem.startswith("transformer.h.") else stem


def write_plan(path: Path, plan: Plan) -> None:
    """Write it whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = [_HEAD % ", ".join(INITS), f"init = {json.dumps(plan.init)}", f"permute = {json.dumps(plan.permute)}", ""]
    lines.append("[structure]")
    for name, setting in plan.structure.items():
        fields = ", ".join(f"{k} = {json.dumps(v)}" for k, v in setting.model_dump(mode="json").items())
        cost = f"  # predicted {plan.predicted[name]:+.4f} nats" if name in plan.predicted else ""
        lines.append(f"{json.dumps(name)} = {{{fields}}}{cost}")
    write_text(path, "\n".join(lines) + "\n")


def read_plan(path: Path, config: RunConfig) -> Plan:
    """The plan in a file, for the model of ``config``.

    Raises:
        ConfigError: not TOML, an unknown key, or a structure that does not fit; it names the file.
    """
    data: dict[str, Any] = load_toml(path)
    for key in data.keys() - {"init", "permute", "structure"}:
        known = did_you_mean(key, ("init", "permute", "structure"))
        raise ConfigError(f"{path} has a key {key!r}, which a plan does not know: use init, permute, structure.{known}")
    init, permute, structure = data.get("init", "activations"), data.get("permute", False), data.get("structure")
    if init not in INITS:
        raise ConfigError(f"init = {init!r} in {path}: use one of {', '.join(INITS)}.{did_you_mean(str(init), INITS)}")
    if not isinstance(permute, bool):
        raise ConfigError(f"permute = {permute!r} in {path}: use true or false")
    if not isinstance(structure, dict) or not structure:
        raise ConfigError(f"{path} says nothing of any weight: give it a table [structure]")
    plain = config.model_dump(exclude_none=True)
    plain["model"]["structure"] = structure
    given = validate(plain, origin=str(path)).model
    # Globs are spelt out, so that a step back of one block can change its weights alone.
    spelt: dict[str, StructureConfig] = {}
    for layer in range(given.n_layer):
        if given.hidden_of(layer) != config.model.hidden_of(layer):
            spelt[f"transformer.h.{layer}.mlp"] = NarrowStructure(hidden=given.hidden_of(layer))
    for name in given.weight_shapes:
        if (setting := given.structure_of(name)).kind != "dense":
            spelt[name] = setting
    return Plan(structure=spelt, init=init, permute=permute)

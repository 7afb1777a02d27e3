"""Recipes: one TOML file per experiment a user would name. ``extends = "other"`` starts from another recipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from bonsaigpt.config import PRESETS, RunConfig, load_toml, validate
from bonsaigpt.errors import ConfigError, did_you_mean

__all__ = ["flatten", "load", "merge", "names", "recipe_dict"]


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files(__name__)
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load(recipe: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """The checked configuration of a recipe (a name, or the path of a TOML file) with overrides on top.

    Raises:
        ConfigError: no such recipe, or a setting that is misspelt, mistyped or impossible.
    """
    data = merge(recipe_dict(recipe), overrides or {})
    return validate(data, origin=f"recipe '{recipe}'" + (" with the given overrides" if overrides else ""))


def recipe_dict(recipe: str, *, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe as nested dictionaries, those that it extends filled in."""
    if recipe.endswith(".toml"):
        path = Path(recipe)
    elif recipe in names():
        path = Path(str(resources.files(__name__) / f"{recipe}.toml"))
    else:
        hint = did_you_mean(recipe, names())
        raise ConfigError(f"there is no recipe '{recipe}'.{hint} `bonsai recipes` lists them; a file ends in .toml.")
    here = str(path.resolve())
    if here in seen:
        raise ConfigError(f"recipe '{recipe}' extends itself, through {len(seen)} files: remove one 'extends'.")
    data = load_toml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"'extends' in {path} must be the name of a recipe, not {base!r}.")
    if base.endswith(".toml"):  # a path is meant relative to the file that names it
        base = str(path.parent / base)
    return merge(recipe_dict(base, seen=(*seen, here)), data)


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``, section by section. Another ``kind`` replaces a variant whole, its fields included, and
    a preset of ``top`` wins over sizes of ``base``, as if ``top`` had spelt them out."""
    model = top.get("model")
    if isinstance(model, dict) and model.get("preset") in PRESETS:
        top = top | {"model": PRESETS[model["preset"]] | model}
    return _merge(base, top)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in top.items():
        below = out.get(name)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            value = _merge(below, value)
        out[name] = value
    return out


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"n_layer": 4}}`` to ``{"model.n_layer": 4}``."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat

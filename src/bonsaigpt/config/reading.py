"""Dictionaries and TOML to a checked configuration and back; what is wrong with one, in a sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from bonsaigpt.config.base import Config
from bonsaigpt.config.run import RunConfig
from bonsaigpt.errors import ConfigError, did_you_mean

__all__ = ["derive", "dump_toml", "load_toml", "setting_docs", "setting_names", "validate"]


def validate(data: dict[str, Any], *, origin: str) -> RunConfig:
    """Make a ``RunConfig`` from nested dictionaries; ``origin`` says in errors where they came from.

    Raises:
        ConfigError: names the setting, what is wrong with it, and the remedy.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(" ".join(_explain(e, origin) for e in error.errors())) from None


def derive(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A copy with some fields changed, checked again: ``derive(config, model={"vocab_size": 65})``."""
    data = config.model_dump(exclude_none=True)
    for section, changes in sections.items():
        data[section] = data[section] | changes
    return validate(data, origin="the derived configuration")


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; errors name the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. `bonsai recipes show NAME` prints one.") from None


def dump_toml(config: Config) -> str:
    """The whole configuration as TOML. Unset optional fields are left out: absent means unset, so it replays."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def setting_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings, members of unions included, e.g. ``model.mlp.hidden``."""
    names: dict[str, None] = {}
    for name, field in model.model_fields.items():
        names[prefix + name] = None
        if _is_map(field.annotation):
            continue  # its keys are the user's: what is below them is set with the whole map
        for member in _models(field.annotation):
            names.update(dict.fromkeys(setting_names(member, f"{prefix}{name}.")))
    return list(names)


def _maps() -> dict[str, list[str]]:
    """The settings that are maps with keys of the user's, and the fields that an entry can have."""
    found: dict[str, list[str]] = {}
    for section, part in RunConfig.model_fields.items():
        for member in _models(part.annotation):
            for name, field in member.model_fields.items():
                if _is_map(field.annotation):
                    entries = _models(field.annotation)
                    found[f"{section}.{name}"] = sorted({n for t in entries for n in t.model_fields})
    return found


def _is_map(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def setting_docs(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, dict[str, list[str]]]:
    """Of each dotted name what it means, and the kinds of its section in which it means that."""
    docs: dict[str, dict[str, list[str]]] = {}
    for name, field in model.model_fields.items():
        kinds = docs.setdefault(prefix + name, {}).setdefault(field.description or "", [])
        kinds.append(str(model.model_fields["kind"].default) if "kind" in model.model_fields else "")
        for member in [] if _is_map(field.annotation) else _models(field.annotation):
            for below, meanings in setting_docs(member, f"{prefix}{name}.").items():
                for words, among in meanings.items():
                    docs.setdefault(below, {}).setdefault(words, []).extend(among)
    return docs


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [t for t in _members(annotation) if isinstance(t, type) and issubclass(t, BaseModel)]


def _names_beside(place: tuple[int | str, ...]) -> list[str]:
    """The settings that may stand where ``place`` (of one of pydantic's errors) does, of the kinds that were chosen;
    and those of other sections."""
    models: list[type[BaseModel]] = [RunConfig]
    prefix = ""
    for part in place[:-1]:
        fields = [model.model_fields[part] for model in models if isinstance(part, str) and part in model.model_fields]
        if fields:
            models, prefix = [m for f in fields for m in _models(f.annotation)], f"{prefix}{part}."
        elif isinstance(part, str):  # the tag of a union
            models = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
    here = [name for model in models for name in setting_names(model, prefix)]
    return [*here, *(name for name in setting_names() if prefix and name.partition(".")[0] != place[0])]


def _members(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [m for a in arguments for m in _members(a)] if arguments else [annotation]


def _explain(error: Any, origin: str) -> str:
    """One sentence for one of pydantic's errors."""
    # The tag of a union ('model', 'mlp', 'swiglu', 'hidden') is no part of the name that a user wrote.
    known = setting_names()
    parts: list[str] = []
    location, entry = list(error["loc"]), ""
    if ".".join(str(p) for p in location[:2]) in _maps() and len(location) > 2:
        # An entry of a map is named by its key; below it come the tag of the union, if it is one, and the field.
        entry = f"{location[0]}.{location[1]}"
        fields = [str(p) for p in location[4:]]
        parts, location = [".".join([f"{entry}['{location[2]}']", *fields])], []
        known = [parts[0].removesuffix(fields[-1]) + name for name in _maps()[entry]] if fields else known
    for number, part in enumerate(location):
        last = number == len(location) - 1
        plain = [p for p in parts if not p.isdecimal()]  # members of a list have numbers
        if isinstance(part, int) or ".".join([*plain, part]) in known or (last and error["type"] == "extra_forbidden"):
            parts.append(str(part))
    name = ".".join(parts)
    if error["type"] == "extra_forbidden":
        beside = known if entry else _names_beside(error["loc"])
        hint = did_you_mean(name, (other for other in beside if other != name))
        of = f" of kind '{error['loc'][-2]}'" if name in known and not entry else ""  # other kinds have it
        return f"unknown setting '{name}'{of} in {origin}.{hint} `bonsai train --help` lists all."
    if error["type"] == "value_error":
        return f"{error['ctx']['error']!s} (in {origin})."
    if error["type"] == "union_tag_invalid":
        expected = error["ctx"]["expected_tags"]
        tag = error["ctx"]["tag"]
        near = did_you_mean(tag, [t.strip(" '") for t in expected.split(",")])
        return f"{name}.kind = '{tag}' in {origin} is not known: use one of {expected}.{near}"
    if error["type"] == "union_tag_not_found":
        return f"{name} in {origin} does not say which kind it is: add {name}.kind."
    if error["type"] == "missing":
        how = f"give it, e.g. --{name} VALUE" if name in known and not entry else "give it"
        return f"{name} is missing in {origin}: {how}."
    return f"{name} = {error['input']!r} in {origin} cannot be used: {error['msg'][0].lower()}{error['msg'][1:]}."

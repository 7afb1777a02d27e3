"""Cache policies in one line, for the command line, tables and plots: ``sinks(4)+window(64), k=int4, v=int8``.

policy     = clause {";" clause}           the first is of every layer, the others of those that they name
clause     = ["layers" NUMBERS ":"] part {"," part}                    e.g. layers 0,2-3: window(32), int8
part       = selection | format | "k=" format | "v=" format | "x=" format | SETTING "=" VALUE
SETTING    = keys (rotated, unrotated), positions (true, slot), chunk (a number)
selection  = term {"+" term}               full, or sinks(N), window(N) and one of h2o(N), snapkv(N), ..
format     = name ["(" setting {"," setting} ")"]        e.g. int4(group=32, hadamard, residual=16, sinks=4)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from bonsaigpt.config import (
    Config,
    ExactFormat,
    Float8Format,
    FullSelection,
    H2OSelection,
    IntFormat,
    KeyNormSelection,
    KVConfig,
    LayerInput,
    LayerPolicy,
    NarrowFormat,
    RandomSelection,
    SignFormat,
    SnapKVSelection,
    TernaryFormat,
    TOVASelection,
    WindowSelection,
)
from bonsaigpt.errors import ConfigError, did_you_mean

__all__ = ["read_policy", "write_policy"]

_SCORED: dict[str, type[Config]] = {
    "h2o": H2OSelection,
    "snapkv": SnapKVSelection,
    "tova": TOVASelection,
    "keynorm": KeyNormSelection,
    "random": RandomSelection,
}
_TERMS = ["full", "sinks", "window", *_SCORED]
_FORMATS: dict[str, type[Config]] = {
    kind: form
    for form in (ExactFormat, NarrowFormat, IntFormat, Float8Format, TernaryFormat, SignFormat)
    for kind in get_args(form.model_fields["kind"].annotation)
}
_CHOICES = {"keys": ("rotated", "unrotated"), "positions": ("true", "slot")}
_TERM = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_LAYERS = re.compile(r"\s*layers?\s+([\d\s,-]+):(.*)", re.DOTALL)


def read_policy(text: str) -> KVConfig:
    """The policy that a text means.

    Raises:
        ConfigError: the word that cannot be, and those that can.
    """
    policy, chunk, layers = LayerPolicy(), {}, {}
    for number, clause in enumerate(_split(text, ";")):
        named = _LAYERS.fullmatch(clause)
        if number == 0 and named is None:
            policy, chunk = _clause(clause, text)
        elif named is None:
            raise ConfigError(f"'{clause.strip()}' in the cache policy says no layers: write e.g. layers 0,2-3: int8")
        else:
            own, further = _clause(named[2], text)
            if further:
                raise ConfigError("chunk in the cache policy is of all layers at once: write it in the first part")
            layers |= dict.fromkeys(_numbers(named[1]), own)
    return _checked(KVConfig, {"policy": policy, "layers": layers, **chunk}, text)


def write_policy(kv: KVConfig) -> str:
    """The text that ``read_policy`` makes this policy of; what is said by default is left out."""
    clauses = [_write_layer(kv.policy) + (f", chunk={kv.chunk}" if kv.chunk != KVConfig().chunk else "")]
    groups: dict[str, list[int]] = {}
    for layer in sorted(kv.layers):
        groups.setdefault(_write_layer(kv.layers[layer]), []).append(layer)
    clauses += [f"layers {','.join(map(str, numbers))}: {words}" for words, numbers in groups.items()]
    return "; ".join(clauses)


# ------------------------------------------------------------------ reading


def _clause(clause: str, text: str) -> tuple[LayerPolicy, dict[str, Any]]:
    """One clause's policy, and ``chunk`` if it says so."""
    fields: dict[str, Any] = {}
    formats: dict[str, Config] = {}
    keys: dict[str, str] = {}
    chunk: dict[str, Any] = {}

    def once(where: dict[str, Any], name: str, value: Any) -> None:
        if name in where:
            raise ConfigError(f"the cache policy '{text}' says twice what {name} is: say it once")
        where[name] = value

    for part in _split(clause, ","):
        name, equals, value = (word.strip() for word in part.partition("=")) if _is_setting(part) else (part, "", "")
        if equals and name in ("k", "v", "x"):
            once(formats, name, _format(value))
        elif equals and name in _CHOICES:
            if value not in _CHOICES[name]:
                raise ConfigError(f"{name}={value} in the cache policy cannot be: use {' or '.join(_CHOICES[name])}")
            once(keys if name == "keys" else fields, name, value)
        elif equals and name == "chunk":
            once(chunk, name, value)
        elif equals:
            known = ["k", "v", "x", *_CHOICES, "chunk"]
            raise ConfigError(
                f"'{name}=' in the cache policy is not known: use {', '.join(known)}.{did_you_mean(name, known)}"
            )
        elif _head(part) in _TERMS or len(_split(part, "+")) > 1:
            once(fields, "select", _selection(part, text))
        else:
            form = _format(part)
            once(formats, "k", form)
            once(formats, "v", form)
    if "x" in formats and (len(formats) > 1 or keys):
        raise ConfigError(
            f"'{text}' holds the layer's input (x=..): keys and values are made of it, so leave out theirs"
        )
    hold: Any = LayerInput.model_construct(x=formats["x"]) if "x" in formats else {"kind": "kv", **formats, **keys}
    return _checked(LayerPolicy, {**fields, "hold": hold}, text), chunk


def _is_setting(part: str) -> bool:
    return "=" in part.partition("(")[0]


def _head(part: str) -> str:
    return part.partition("(")[0].strip()


def _selection(part: str, text: str) -> Config:
    numbers: dict[str, Any] = {}
    scored: list[tuple[str, str]] = []
    terms = [_parsed(term) for term in _split(part, "+")]
    for name, inside in terms:
        if name == "full" and len(terms) == 1:
            return FullSelection()
        if name in _SCORED:
            scored.append((name, inside))
        elif name in ("sinks", "window") and name not in numbers:
            numbers[name] = _number(name, inside)
        else:
            why = " stands alone" if name == "full" else " stands there twice" if name in numbers else " is not known"
            raise ConfigError(
                f"'{name}' in the cache policy{why}: tokens are chosen by {', '.join(_TERMS)}."
                f"{did_you_mean(name, _TERMS) if 'known' in why else ''}"
            )
    if len(scored) > 1:
        raise ConfigError(f"{scored[0][0]} and {scored[1][0]} in the cache policy cannot go together: choose one")
    if not scored and "window" not in numbers:
        raise ConfigError("sinks in the cache policy go with a window: write e.g. sinks(4)+window(60)")
    if not scored:
        return _checked(WindowSelection, numbers, text)
    [(name, inside)] = scored
    return _checked(_SCORED[name], numbers | _settings(_SCORED[name], name, inside, count="budget"), text)


def _format(words: str) -> Config:
    name, inside = _parsed(words)
    if name not in _FORMATS:
        known = [*_TERMS, *_FORMATS]
        raise ConfigError(
            f"'{name}' in the cache policy is not known: formats are {', '.join(_FORMATS)}; tokens are chosen by "
            f"{', '.join(_TERMS)}.{did_you_mean(name, known)}"
        )
    return _checked(_FORMATS[name], {"kind": name, **_settings(_FORMATS[name], name, inside)}, words)


def _settings(form: type[Config], name: str, inside: str, *, count: str = "") -> dict[str, Any]:
    """The settings between parentheses: NAME=VALUE, a flag's mere name, or a number first where ``count`` names it."""
    fields = {n: f for n, f in form.model_fields.items() if n != "kind" and (not count or n not in ("sinks", "window"))}
    found: dict[str, Any] = {}
    for setting in _split(inside, ",") if inside.strip() else []:
        key, equals, value = (word.strip() for word in setting.partition("="))
        if count and not equals and key.isdecimal() and not found:
            found[count] = int(key)
        elif key in fields and (equals or fields[key].annotation is bool):
            found[key] = value if equals else True
        else:
            known = ", ".join(_shown(n, fields[n].annotation) for n in fields) or "nothing"
            raise ConfigError(
                f"'{setting.strip()}' in {name}(..) of the cache policy cannot be: it takes {known}."
                f"{did_you_mean(key, fields)}"
            )
    if count and count not in found:
        raise ConfigError(f"{name} in the cache policy needs a number of tokens: write e.g. {name}(32)")
    return found


def _shown(name: str, annotation: Any) -> str:
    if annotation is bool:
        return name
    return f"{name}={'|'.join(get_args(annotation))}" if get_origin(annotation) is Literal else f"{name}=N"


def _number(name: str, inside: str) -> int:
    if not inside.strip().isdecimal():
        raise ConfigError(f"{name}({inside}) in the cache policy cannot be: write a number of tokens, e.g. {name}(4)")
    return int(inside)


def _numbers(words: str) -> Iterator[int]:
    """0,2-3: single numbers and ranges."""
    for part in words.split(","):
        first, _, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
            raise ConfigError(f"'layers {words.strip()}' in the cache policy cannot be: write e.g. layers 0,2-3: int8")
        yield from range(int(first), int(last or first) + 1)


def _parsed(words: str) -> tuple[str, str]:
    found = _TERM.fullmatch(words)
    if found is None:
        raise ConfigError(f"'{words.strip()}' in the cache policy cannot be read: write NAME or NAME(SETTINGS)")
    return found[1], found[2] or ""


def _split(words: str, at: str) -> list[str]:
    """Parts between separators that stand outside parentheses, and after ``layers 0,2:`` as well."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(words):
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == at and depth == 0:
            parts.append(words[start:i])
            start = i + 1
    if depth:
        raise ConfigError(f"the parentheses of the cache policy '{words.strip()}' do not match: close each that opens")
    return [*parts, words[start:]]


def _checked(form: type[Any], fields: dict[str, Any], text: str) -> Any:
    try:
        return form.model_validate(fields)
    except ValidationError as error:
        first: Any = error.errors()[0]
        if first["type"] == "value_error":
            raise ConfigError(f"the cache policy '{text.strip()}' cannot be: {first['ctx']['error']}") from None
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name} = {first['input']!r} in '{text.strip()}' cannot be used: {first['msg']}") from None


# ------------------------------------------------------------------ writing


def _write_layer(policy: LayerPolicy) -> str:
    parts = [_write_selection(policy.select)]
    formats = {name: _write(held.kind, held) for name, held in policy.formats.items()}
    if "x" in formats:
        parts.append(f"x={formats['x']}")
    elif formats["k"] == formats["v"]:
        parts += [formats["k"]] if formats["k"] != "exact" else []
    else:
        parts += [f"{name}={words}" for name, words in formats.items()]
    if not isinstance(policy.hold, LayerInput) and policy.hold.keys != "rotated":
        parts.append(f"keys={policy.hold.keys}")
    if policy.positions != "true":
        parts.append(f"positions={policy.positions}")
    return ", ".join(parts)


def _write_selection(select: Any) -> str:
    if select.kind == "full":
        return "full"
    terms = [f"sinks({select.sinks})"] if select.sinks else []
    terms.append(f"window({select.window})")
    if select.kind != "window":
        terms.append(_write(select.kind, select, str(select.budget), hidden=("sinks", "window", "budget")))
    return "+".join(terms)


def _write(name: str, form: Config, *first: str, hidden: tuple[str, ...] = ()) -> str:
    """NAME(SETTINGS) with what differs from the defaults."""
    settings = list(first)
    for field, about in type(form).model_fields.items():
        value = getattr(form, field)
        if field != "kind" and field not in hidden and value != about.default:
            settings.append(field if value is True else f"{field}={value}")
    return f"{name}({', '.join(settings)})" if settings else name

"""What a family of models in Hugging Face's format is: a table of names, and settings that are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.spec import parameters

__all__ = ["Entry", "Family", "Settings", "Unmapped", "entries", "refuse"]

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter of ours, and the tensors of theirs that it is: one, several on top of each other (queries, keys,
    values), or several that are equal."""

    ours: str
    theirs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of theirs."""
    transposed: bool = False
    equal: bool = False

    def split(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Their tensors, from our parameter."""
        if self.transposed:
            value = value.T
        if self.equal:
            return dict.fromkeys(self.theirs, value)
        ends = np.cumsum([shape[0] for shape in self.shapes])[:-1]
        return dict(zip(self.theirs, np.split(value, ends) if len(ends) else [value], strict=True))

    def join(self, tensors: list[np.ndarray], *, origin: str) -> np.ndarray:
        """Our parameter, from their tensors in the order of ``theirs``."""
        first, *others = tensors
        if self.equal:
            if not all(np.array_equal(first, other) for other in others):
                raise CheckpointError(
                    f"{self.theirs[0]} and {self.theirs[1]} of {origin} differ: a ReLU gate over another matrix is not "
                    "among the MLPs here (model.mlp.kind)"
                )
            others = []
        value = np.concatenate([first, *others]) if others else first
        return np.ascontiguousarray(value.T if self.transposed else value)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``."""

    model_type: str
    architecture: str
    modules: Mapping[str, tuple[str, ...]]
    """Our modules, those of a block without its number, and theirs; ``{}`` is the number."""
    read: Callable[[Settings], Settings]
    """Settings of a ``ModelConfig`` from a ``config.json``.

    Raises:
        KeyError: it lacks one.
        Unmapped: it asks for what ours do not have.
    """
    write: Callable[[ModelConfig], Settings]
    """A ``config.json`` that is read as this, if the family can say it."""
    transposed: bool = False
    """Whether matrices of the blocks lie (in, out), as GPT-2's Conv1D has them."""
    left_out: str = ""
    """What a file of the bare model, without a head, has not in front of its names."""
    buffers: tuple[str, ...] = ()
    """Ends of names that old files hold besides: masks and tables that are computed anew."""
    wants: frozenset[str] = field(default_factory=frozenset)
    """What the family always has, by the names of ``equivalents.py``."""


class Unmapped(ValueError):
    """A setting of theirs, in words."""


def entries(family: Family, config: ModelConfig) -> Iterator[Entry]:
    """Every parameter that is stored, in the order of the spec; the weights are dense."""
    for param in parameters(config):
        if param.tied_to is not None:
            continue
        module, _, leaf = param.name.rpartition(".")
        if leaf not in ("weight", "bias"):  # one vector that is a module of theirs
            module, leaf = param.name, "weight"
        layer, inside = "", module
        if module.startswith("transformer.h."):
            layer, _, inside = module.removeprefix("transformer.h.").partition(".")
        names = tuple(f"{name}.{leaf}".replace("{}", layer) for name in _module(family, config, inside))
        turned = family.transposed and bool(layer) and len(param.shape) == 2
        whole = param.shape[::-1] if turned else param.shape
        stacked = inside == "attn.c_attn" and len(names) > 1
        rows = config.attention_maps(int(layer)) if stacked else (whole[0],) * len(names)
        yield Entry(
            ours=param.name,
            theirs=names,
            shapes=tuple((count, *whole[1:]) for count in rows),
            transposed=turned,
            equal=len(names) > 1 and not stacked,
        )


def _module(family: Family, config: ModelConfig, name: str) -> tuple[str, ...]:
    """Their modules. Squared ReLU is a gate over itself, relu(x) * x: where they gate, our one matrix is both of
    theirs."""
    if name == "mlp.c_fc" and config.mlp.kind != "swiglu" and "mlp.c_gate" in family.modules:
        return family.modules["mlp.c_gate"] + family.modules["mlp.c_fc"]
    return family.modules[name]


def refuse(theirs: Settings, **neutral: Any) -> None:
    """Raise ``Unmapped`` if a setting is there and is not neutral."""
    for name, value in neutral.items():
        if theirs.get(name, value) not in (value, None):
            raise Unmapped(f"{name} = {theirs[name]!r}")

"""The best mix within a budget: windows, and formats of keys and values or of the layer's input that both are made
from, first for all layers, then layer by layer.

Greedy: of all single steps downwards (a shorter window, a coarser format, the input instead of keys and values) the one
that saves the most bits for the loss that it adds is taken, as long as the limit allows one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.kv import read_policy

__all__ = ["Found", "search"]

_LADDER = ["bf16", "int8", "int6", "int5", "int4(hadamard)", "int3(hadamard)", "int2({fine}, hadamard)"]
_NOISE = 1e-5
"""Nats that a step is taken to add at least: below, only bits count."""

Quick = Callable[[KVConfig], tuple[float, float]]


@dataclass(frozen=True)
class _Layer:
    window: int
    """Place in the list of windows."""
    k: int = 0
    v: int = 0
    """Places on the ladder of formats."""
    x: int | None = None
    """Place of the layer's input, if that is held and no keys and values."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a search stands."""

    kv: KVConfig
    added: float
    bits: float
    tried: int


def search(
    config: ModelConfig,
    quick: Quick,
    *,
    max_bits: float | None = None,
    max_loss: float | None = None,
    say: Callable[[Found], None] = lambda found: None,
) -> Found:
    """The policy of fewest bits with an added loss of at most ``max_loss``, or of least loss with at most ``max_bits``
    bits a token of the training context, as far as greedy steps lead.

    Args:
        quick: added loss in nats and bits of a policy.
    """
    windows = _windows(config.block_size)
    layers = [_Layer(0)] * len(config.kv_layers)
    tried: dict[tuple[_Layer, ...], tuple[float, float]] = {}

    def judge(state: Sequence[_Layer]) -> tuple[float, float]:
        if tuple(state) not in tried:
            tried[tuple(state)] = quick(_policy(config, windows, state))
        return tried[tuple(state)]

    added, bits = judge(layers)
    for alike in (True, False):
        while max_bits is None or bits > max_bits:
            steps = [(state, *judge(state)) for state in _steps(layers, len(windows), alike=alike)]
            fits = [s for s in steps if s[2] < bits and (max_loss is None or s[1] <= max_loss)]
            if not fits:
                break
            layers, added, bits = max(fits, key=lambda s: (bits - s[2]) / max(_NOISE, s[1] - added))
            say(Found(kv=_policy(config, windows, layers), added=added, bits=bits, tried=len(tried)))
    return Found(kv=_policy(config, windows, layers), added=added, bits=bits, tried=len(tried))


def _windows(block: int) -> list[int]:
    """The block, and on down to 2 tokens in steps of about a seventh: no choice is far from the best."""
    found = [block]
    while found[-1] > 2:
        found.append(max(2, min(found[-1] - 1, round(found[-1] / 1.15))))
    return found


def _steps(layers: Sequence[_Layer], windows: int, *, alike: bool) -> Iterator[list[_Layer]]:
    """All states that are one step below; ``alike``: the step is taken in every layer."""
    for name in ("window", "k", "v", "x"):
        for chosen in [range(len(layers))] if alike else [[i] for i in range(len(layers))]:
            lower = {i: _lower(layers[i], name, windows) for i in chosen}
            if all(layer is not None for layer in lower.values()):
                yield [lower.get(i) or layer for i, layer in enumerate(layers)]


def _lower(layer: _Layer, name: str, windows: int) -> _Layer | None:
    """A layer one step below; None where there is none. The input takes over at the finer of both formats."""
    last = len(_LADDER) - 1
    if name == "window":
        return replace(layer, window=layer.window + 1) if layer.window < windows - 1 else None
    if name == "x":
        x = min(layer.k, layer.v) if layer.x is None else layer.x + 1
        return replace(layer, x=x) if x <= last else None
    place = layer.k if name == "k" else layer.v
    change: dict[str, Any] = {name: place + 1}
    return replace(layer, **change) if layer.x is None and place < last else None


def _policy(config: ModelConfig, windows: Sequence[int], layers: Sequence[_Layer]) -> KVConfig:
    """In words, with the most frequent layer first. Layers that read another's keys and values have none."""
    width = config.head_width
    fine = f"group={16 if width % 16 == 0 else width}"

    def form(place: int) -> str:
        return _LADDER[place].format(fine=fine)

    words = {
        number: f"window({windows[s.window]}), "
        + (f"k={form(s.k)}, v={form(s.v)}" if s.x is None else f"x={form(s.x)}")
        for number, s in zip(config.kv_layers, layers, strict=True)
    }
    found = list(words.values())
    common = max(found, key=found.count)
    own = [f"layers {i}: {w}" for i, w in words.items() if w != common]
    return read_policy("; ".join([common, *own]))

"""The best mix within a budget: windows, and formats of keys and values, first for all layers, then layer by layer.

Greedy: of all single steps downwards (a shorter window, a coarser format) the one that saves the most bits for the loss
that it adds is taken, as long as the limit allows one.
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
    block = config.block_size
    windows = sorted({max(2, block * n // 16) for n in (16, 12, 8, 6, 4, 3, 2, 1)}, reverse=True)
    layers = [_Layer(0)] * config.n_layer
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


def _steps(layers: Sequence[_Layer], windows: int, *, alike: bool) -> Iterator[list[_Layer]]:
    """All states that are one step below; ``alike``: the step is taken in every layer."""
    most = {"window": windows - 1, "k": len(_LADDER) - 1, "v": len(_LADDER) - 1}
    for name, last in most.items():
        for chosen in [range(len(layers))] if alike else [[i] for i in range(len(layers))]:
            if all(getattr(layers[i], name) < last for i in chosen):
                yield [_lower(layer, name) if i in chosen else layer for i, layer in enumerate(layers)]


def _lower(layer: _Layer, name: str) -> _Layer:
    change: dict[str, Any] = {name: getattr(layer, name) + 1}
    return replace(layer, **change)


def _policy(config: ModelConfig, windows: Sequence[int], layers: Sequence[_Layer]) -> KVConfig:
    width = config.head_width
    fine = f"group={16 if width % 16 == 0 else width}"
    words = [
        f"window({windows[s.window]}), k={_LADDER[s.k].format(fine=fine)}, v={_LADDER[s.v].format(fine=fine)}"
        for s in layers
    ]
    common = max(words, key=words.count)
    own = [f"layers {i}: {w}" for i, w in enumerate(words) if w != common]
    return read_policy("; ".join([common, *own]))

"""Which decoder: the C++ one on a CPU, the model's own code elsewhere and wherever the other cannot be; and the same of
the blocks around a cache with a policy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bonsaigpt.config import KVConfig
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.kv.decoder import PolicyDecoder
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.native.blocks import NativeBlocks
from bonsaigpt.torch_engine.native.building import Missing, is_built
from bonsaigpt.torch_engine.native.decoder import NativeDecoder
from bonsaigpt.torch_engine.native.packing import what_is_not_computed, what_is_not_dense
from bonsaigpt.torch_engine.rounding import Weights

__all__ = ["make_decoder"]

_FEW = 200
"""Tokens below which nothing is built: building takes some seconds, once for all runs to come."""


def make_decoder(
    model: GPT,
    *,
    rows: int,
    placement: Placement,
    weights: Weights = "fp32",
    tokens: int | None = None,
    say: Callable[[str], None] = lambda words: None,
    kv: KVConfig | None = None,
) -> NativeDecoder | EagerDecoder | PolicyDecoder:
    """See ``bonsaigpt.engines.Engine.decoder``.

    Raises:
        ConfigError: the model cannot have this policy.
    """

    def blocks(model: GPT) -> NativeBlocks:
        _check(model, placement, tokens, say)
        return NativeBlocks(model, weights=weights, threads=torch.get_num_threads())

    if kv is not None and not kv.is_plain:
        return PolicyDecoder(model, kv, rows=rows, placement=placement, weights=weights, native=blocks)
    try:
        _check(model, placement, tokens, say)
        return NativeDecoder(model, rows=rows, weights=weights, threads=torch.get_num_threads())
    except Missing as why:
        return EagerDecoder(model, rows=rows, placement=placement, weights=weights, why=str(why))


def _check(model: GPT, placement: Placement, tokens: int | None, say: Callable[[str], None]) -> None:
    """Raise ``Missing`` if the C++ cannot be, or does not pay for so few tokens."""
    if (missing := _what_is_missing(model, placement)) is not None:
        raise Missing(missing)
    if not is_built():
        if tokens is not None and tokens < _FEW:
            raise Missing(f"the C++ is not built yet, and {tokens} tokens do not pay for that")
        say("building the decoding step in C++: some seconds, once for this machine")


def _what_is_missing(model: GPT, placement: Placement) -> str | None:
    """In words why the C++ is not even tried, or None."""
    if placement.device.type != "cpu":
        return "the C++ is for CPUs"
    if placement.dtype != torch.float32:
        return "the C++ computes in fp32 alone"
    if (unknown := what_is_not_computed(model.config)) is not None:
        return unknown
    if (replaced := what_is_not_dense(model)) is not None:
        return f"the C++ does not know this model: {replaced}"
    return None

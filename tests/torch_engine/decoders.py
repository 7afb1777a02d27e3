"""Decoders and models for tests of decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.model import GPT, build
from bonsaigpt.torch_engine.native.building import Missing, load_library
from bonsaigpt.torch_engine.native.decoder import NativeDecoder
from tests.torch_engine.variants import variant

__all__ = ["CPU", "KINDS", "logits_of", "make", "model_of", "need_cpp"]

CPU = choose_placement("cpu", "fp32")
KINDS = ("native", "eager", "eager, rows together")


def need_cpp() -> None:
    """The test is skipped where the library cannot be built."""
    try:
        load_library()
    except Missing as why:
        pytest.skip(f"no C++ here: {why}")


def make(kind: str, model: GPT, *, rows: int = 1, threads: int = 1, **options: Any) -> NativeDecoder | EagerDecoder:
    """A decoder of one kind; the test is skipped where it cannot be."""
    if kind == "native":
        need_cpp()
        return NativeDecoder(model, rows=rows, threads=threads, **options)
    return EagerDecoder(model, rows=rows, placement=CPU, batched="together" in kind, **options)


def model_of(name: str, **changes: Any) -> GPT:
    """A variant with weights of size 0.15, at which every part matters and the likeliest token changes often."""
    model = build(variant(name, **changes), seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    return model


@torch.inference_mode()
def logits_of(model: GPT, tokens: np.ndarray) -> np.ndarray:
    """The reference: the whole text at once in float64, (T, V)."""
    double = GPT(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    return double(torch.from_numpy(tokens)[None])[0].numpy()

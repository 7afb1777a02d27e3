"""Models whose matrices hold fewer bits: for decoding, which reads every weight for every token.

int8 is symmetric and has one scale for each output channel: w ~ scale * q with q in -127 .. 127, so an entry is off by
at most half a scale, max|row| / 254. Activations, norms, and the embedding that tokens are looked up in stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from bonsaigpt.structure import merge
from bonsaigpt.torch_engine.linear import Linear
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.structured import dense

__all__ = ["Weights", "quantize_int8", "rounded", "with_matrices"]

Weights = Literal["fp32", "int8"]
"""How a decoder keeps the matrices; ``fp32`` stands for the model's own format."""


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) int8 and (out,) float32 scales."""
    scales = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def rounded(model: GPT) -> GPT:
    """A copy whose matrices hold what int8 keeps of them: to measure the loss that it costs."""

    def round_trip(weight: Tensor) -> Tensor:
        q, scales = quantize_int8(weight)
        return q * scales[:, None]

    return with_matrices(model, round_trip)


@torch.no_grad()
def with_matrices(model: GPT, change: Callable[[Tensor], Tensor]) -> GPT:
    """A copy, to evaluate, with every matrix of a ``Linear`` changed; a tied head becomes one of its own, and factors
    become the matrix that they stand for."""
    config, values = merge(model.config, weights(model))
    values.setdefault("lm_head.weight", values["transformer.wte.weight"])
    copy = build(config.model_copy(update={"tie_embeddings": False}), values=values)
    for module in copy.modules():
        if isinstance(module, Linear):
            module.weight = nn.Parameter(change(dense(module.weight).detach()))
    return copy.to(next(model.parameters()).device).eval().requires_grad_(False)

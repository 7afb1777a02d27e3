"""Models whose matrices hold fewer bits: for decoding, which reads every weight for every token.

int8 is symmetric and has one scale for each output channel: w ~ scale * q with q in -127 .. 127, so an entry is off by
at most half a scale, max|row| / 254. int4 has one scale, in 16 bits, for every 32 inputs: w ~ scale * q with q in
-8 .. 7, the largest entry being -8, as GGUF's q4_0 has it, to the bit: 4.5 bits an entry. Activations, norms, and the
embedding that tokens are looked up in stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.structure import merge
from bonsaigpt.torch_engine.linear import Linear
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.structured import dense

__all__ = ["Weights", "quantize_int4", "quantize_int8", "rounded", "with_matrices"]

GROUP = 32
"""Inputs that share a scale in int4."""
Weights = Literal["fp32", "int8"]
"""How a decoder keeps the matrices; ``fp32`` stands for the model's own format."""


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) int8 and (out,) float32 scales."""
    scales = weight.abs().amax(dim=1).clamp_min(1e-30) / 127
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, groups, 32) int8 in -8 .. 7 and (out, groups) float32 scales; the last group is filled up with zeros."""
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scales = largest / -8
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    q = (groups * inverse + 8.5).floor().clamp(0, 15) - 8
    return q.to(torch.int8), scales[..., 0].half().float()


def rounded(model: GPT, weights: Literal["int8", "int4"] = "int8") -> GPT:
    """A copy whose matrices hold what int8 or int4 keeps of them: to measure the loss that it costs."""

    def round_trip(weight: Tensor) -> Tensor:
        if weights == "int4":
            q, scales = quantize_int4(weight)
            return (q * scales[..., None]).flatten(1)[:, : weight.shape[1]]
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

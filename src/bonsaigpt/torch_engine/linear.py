"""The one function that applies a weight, and the smallest modules around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import ModelConfig
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.elementwise import rms_norm
from bonsaigpt.torch_engine.structured import Weight, new_weight

__all__ = ["Linear", "Norm", "linear"]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; weights are (out, in), dense or made of factors."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    y = weight(x)
    return y if bias is None else y + bias


class Linear(nn.Module):
    """A weight (out, in) of any structure and perhaps a bias. Memory is not filled here: values come from the spec or a
    file."""

    def __init__(self, structure: Structure, *, bias: bool) -> None:
        super().__init__()
        self.weight = new_weight(structure)
        self.bias = nn.Parameter(torch.empty(structure.out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm or RMSNorm, as the configuration says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps = config.norm.kind, config.norm.eps
        self.weight = nn.Parameter(torch.empty(config.n_embd)) if config.norm.scale else None
        has_bias = config.bias and config.norm.scale and self.kind == "layernorm"
        self.bias = nn.Parameter(torch.empty(config.n_embd)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rmsnorm":
            return rms_norm(x, self.weight, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

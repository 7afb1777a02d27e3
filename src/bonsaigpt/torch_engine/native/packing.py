"""Weights in the order in which the C++ reads them, as float32 or rounded to int8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import ModelConfig, SoftmaxAttention
from bonsaigpt.spec import parameters
from bonsaigpt.torch_engine.attention import Attention
from bonsaigpt.torch_engine.linear import Linear, Norm
from bonsaigpt.torch_engine.mlp import MLP
from bonsaigpt.torch_engine.model import GPT, Block, Embedding, Transformer
from bonsaigpt.torch_engine.native.library import Matrix
from bonsaigpt.torch_engine.rounding import Weights, quantize_int8
from bonsaigpt.torch_engine.structured import FactoredWeight, dense

__all__ = ["LANES", "Packed", "what_is_not_computed", "what_is_not_dense"]

LANES = 16
"""Outputs of a panel; decode.cpp's own number."""
_LINE = 64
"""Bytes of a cache line."""

_WTE = "transformer.wte.weight"
_TABLES = (_WTE, "transformer.wpe.weight")
"""Looked up, not multiplied."""

_REPEATED: dict[type[nn.Module], object] = {
    kind: kind.forward
    for kind in (GPT, Transformer, Block, Attention, MLP, Linear, Norm, Embedding, nn.Dropout, nn.ModuleList)
}
"""Modules whose code decode.cpp repeats."""


class Packed:
    """Matrices for the C++ and the memory that they point to: one piece, as NumPy asks the system for large pages."""

    def __init__(self, model: GPT, weights: Weights) -> None:
        self.weights = weights
        shapes = [shape for name, shape in model.config.weight_shapes.items() if not name.startswith(_TABLES)]
        if model.config.tie_embeddings:
            shapes.append(model.config.weight_shapes[_WTE])
        self._one = torch.int8 if weights == "int8" else torch.float32
        room = sum(_aligned(-(-out // LANES) * LANES * into * self._one.itemsize) for out, into in shapes)
        self._room = torch.from_numpy(np.empty(room + _LINE, dtype=np.uint8))
        self._used = -self._room.data_ptr() % _LINE
        self._kept: list[Tensor] = []
        self.bytes = 0
        """Of the matrices that every step reads."""

    def pointer(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor's float32 numbers; they stay as long as this object."""
        if tensor is None:
            return None
        kept = tensor.detach().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()

    def linear(self, module: nn.Module | None) -> Matrix:
        """One ``Linear``; of none, the empty matrix."""
        if module is None:
            return Matrix()
        assert isinstance(module, Linear)
        return self.matrix(dense(module.weight), module.bias)

    def matrix(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """A weight (out, in), its outputs padded with zeros to whole panels."""
        weight = weight.detach()
        outputs, inputs = weight.shape
        padding = -outputs % LANES
        scales = None
        if self.weights == "int8":
            weight, scales = quantize_int8(weight)
            scales = F.pad(scales, (0, padding))
        size = (outputs + padding) * inputs * self._one.itemsize
        panels = self._room[self._used : self._used + size].view(self._one).view(-1, inputs, LANES)
        panels.copy_(F.pad(weight, (0, 0, 0, padding)).view(-1, LANES, inputs).transpose(1, 2))
        self._used += _aligned(size)
        self.bytes += size
        if bias is not None:
            bias = F.pad(bias.detach(), (0, padding))
        return Matrix(panels.data_ptr(), self.pointer(scales), self.pointer(bias), outputs, inputs)


def _aligned(size: int) -> int:
    return -(-size // _LINE) * _LINE


def what_is_not_computed(config: ModelConfig) -> str | None:
    """In words which variant of the model decode.cpp does not know, or None."""
    if not isinstance(config.attention, SoftmaxAttention):
        return f"the C++ does not compute model.attention.kind = {config.attention.kind}"
    if config.experts > 1:
        return f"the C++ does not compute model.mlp.kind = {config.mlp.kind}"
    if config.attention.share_kv > 1:
        return "the C++ does not compute model.attention.share_kv"
    return None


def what_is_not_dense(model: nn.Module) -> str | None:
    """In words why the weights cannot be packed, or None: each must be a dense float32 matrix of the spec's, or factors
    that stand for one, applied by the code that the C++ repeats."""
    for name, module in model.named_modules():
        known = FactoredWeight.forward if isinstance(module, FactoredWeight) else _REPEATED.get(type(module))
        if known is None or type(module).forward is not known or "forward" in vars(module) or module._forward_hooks:
            return f"{name or type(module).__name__} has been replaced"
    assert isinstance(model, GPT)
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if found != {p.name: p.shape for p in parameters(model.config) if p.tied_to is None}:
        return "its weights are not those of its configuration"
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.layout != torch.strided or parameter.device.type != "cpu":
            return f"{name} is not dense float32 on the CPU"
    return None

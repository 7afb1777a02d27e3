"""The MLPs: GELU (GPT-2), SwiGLU (Shazeer 2020, equation 6) and squared ReLU (So et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from bonsaigpt.config import GeluMLP, ModelConfig
from bonsaigpt.structure import Structure
from bonsaigpt.torch_engine.elementwise import relu2
from bonsaigpt.torch_engine.linear import Linear

__all__ = ["MLP"]


class MLP(nn.Module):
    """D -> F -> D with the configured non-linearity."""

    def __init__(self, config: ModelConfig, layer: int, made: Mapping[str, Structure]) -> None:
        super().__init__()
        one = config.one_mlp
        self.kind, self.approximate = one.kind, one.approximate if isinstance(one, GeluMLP) else "none"
        path = f"transformer.h.{layer}.mlp"
        if self.kind == "swiglu":
            self.c_gate = Linear(made[f"{path}.c_gate.weight"], bias=config.bias)
        self.c_fc = Linear(made[f"{path}.c_fc.weight"], bias=config.bias)
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def forward(self, x_BTD: Tensor, loads: list[Tensor] | None = None) -> Tensor:
        """``loads`` is for experts (``experts.py``): here is nothing to choose."""
        gate_BTF = self.c_gate(x_BTD) if self.kind == "swiglu" else None
        return self.c_proj(self.bend(self.c_fc(x_BTD), gate_BTF))

    def bend(self, h: Tensor, gate: Tensor | None) -> Tensor:
        """The non-linearity; the gate is there for SwiGLU alone."""
        if gate is not None:
            return F.silu(gate) * h
        return relu2(h) if self.kind == "relu2" else F.gelu(h, approximate=self.approximate)

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
        self.kind = config.mlp.kind
        self.approximate = config.mlp.approximate if isinstance(config.mlp, GeluMLP) else "none"
        path = f"transformer.h.{layer}.mlp"
        if self.kind == "swiglu":
            self.c_gate = Linear(made[f"{path}.c_gate.weight"], bias=config.bias)
        self.c_fc = Linear(made[f"{path}.c_fc.weight"], bias=config.bias)
        self.c_proj = Linear(made[f"{path}.c_proj.weight"], bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.c_fc(x_BTD)
        if self.kind == "swiglu":
            h_BTF = F.silu(self.c_gate(x_BTD)) * h_BTF
        elif self.kind == "relu2":
            h_BTF = relu2(h_BTF)
        else:
            h_BTF = F.gelu(h_BTF, approximate=self.approximate)
        return self.c_proj(h_BTF)

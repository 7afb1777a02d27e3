"""The MLPs: GELU (GPT-2), SwiGLU (Shazeer 2020, equation 6) and squared ReLU (So et al. 2021)."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from bonsaigpt.config import GeluMLP, ModelConfig
from bonsaigpt.jax_engine.linear import apply

__all__ = ["mlp"]


def mlp(config: ModelConfig, params: dict[str, Any], x_BTD: Array) -> Array:
    """D -> F -> D with the configured non-linearity."""
    h_BTF = apply(params["c_fc"], x_BTD)
    if config.one_mlp.kind == "swiglu":
        h_BTF = jax.nn.silu(apply(params["c_gate"], x_BTD)) * h_BTF
    elif config.one_mlp.kind == "relu2":
        h_BTF = jax.nn.relu(h_BTF) ** 2
    else:
        assert isinstance(config.one_mlp, GeluMLP)
        # jax.nn.gelu would take the tanh formula unless told.
        h_BTF = jax.nn.gelu(h_BTF, approximate=config.one_mlp.approximate == "tanh")
    return apply(params["c_proj"], h_BTF)

"""The model's contract: every parameter's name, shape, initial values, decay and tying, for all engines.

Names are nanoGPT's (``transformer.h.0.attn.c_attn.weight``); matrices are (out, in). Initial values are a function
of (seed, name) made with NumPy, so both engines start from equal weights and any part can be made alone.

The letters that tensors carry as suffixes, one legend for all files (``q_BHTK``):

    B  batch              D  width of the residual stream (n_embd)     F  hidden units of the MLP
    T  time (new tokens)  H  query heads (n_head)                      V  vocabulary
    S  cache slots        G  key/value heads (n_kv_head)               L  layers (n_layer)
                          K  width of a head (D / H)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bonsaigpt.config import ModelConfig
from bonsaigpt.randomness import generator

__all__ = ["Param", "initial_value", "parameter_count", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Param:
    """One parameter of the model."""

    name: str
    """Dotted path, equal to the key in ``model.safetensors``."""
    shape: tuple[int, ...]
    init: Literal["normal", "ones", "zeros"]
    std: float = 0.0
    """Standard deviation of a normal initialisation."""
    decay: bool
    """Whether weight decay applies: matrices and embeddings, as GPT-2 and nanoGPT have it."""
    lookup: bool = False
    """Whether rows are looked up instead of multiplied: an embedding."""
    tied_to: str | None = None
    """Name of the parameter whose storage this one shares; a tied parameter is stored once, under that name."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parameters(config: ModelConfig) -> tuple[Param, ...]:
    """All parameters in the order of the forward pass, tied ones included.

    Initialisation is GPT-2's (Radford et al. 2019, section 2.3): N(0, 0.02), and 0.02 / sqrt(2 L) for the matrices
    that write into the residual stream, so that the sum of 2 L branches keeps its scale.
    """
    width, hidden = config.n_embd, config.hidden
    qkv = (config.n_head + 2 * config.n_kv_head) * config.head_width
    residual_std = 0.02 / math.sqrt(2 * config.n_layer)
    table: list[Param] = []

    def matrix(name: str, out: int, into: int, std: float = 0.02) -> None:
        table.append(Param(name=f"{name}.weight", shape=(out, into), init="normal", std=std, decay=True))
        if config.bias:
            table.append(Param(name=f"{name}.bias", shape=(out,), init="zeros", decay=False))

    def norm(name: str) -> None:
        table.append(Param(name=f"{name}.weight", shape=(width,), init="ones", decay=False))
        if config.bias and config.norm.kind == "layernorm":
            table.append(Param(name=f"{name}.bias", shape=(width,), init="zeros", decay=False))

    def embedding(name: str, rows: int) -> None:
        table.append(Param(name=name, shape=(rows, width), init="normal", std=0.02, decay=True, lookup=True))

    embedding("transformer.wte.weight", config.vocabulary)
    if config.position.kind == "learned":
        embedding("transformer.wpe.weight", config.block_size)
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        norm(f"{block}.ln_1")
        matrix(f"{block}.attn.c_attn", qkv, width)
        matrix(f"{block}.attn.c_proj", width, config.n_head * config.head_width, residual_std)
        norm(f"{block}.ln_2")
        if config.mlp.kind == "swiglu":
            matrix(f"{block}.mlp.c_gate", hidden, width)
        matrix(f"{block}.mlp.c_fc", hidden, width)
        matrix(f"{block}.mlp.c_proj", width, hidden, residual_std)
    norm("transformer.ln_f")
    table.append(
        Param(
            name="lm_head.weight",
            shape=(config.vocabulary, width),
            init="normal",
            std=0.02,
            decay=True,
            tied_to="transformer.wte.weight" if config.tie_embeddings else None,
        )
    )
    return tuple(table)


def initial_value(param: Param, seed: int) -> np.ndarray:
    """The float32 array with which ``param`` starts: a function of (seed, name), whatever else was made before."""
    if param.init == "ones":
        return np.ones(param.shape, dtype=np.float32)
    if param.init == "zeros":
        return np.zeros(param.shape, dtype=np.float32)
    values = generator(seed, "init", param.name).standard_normal(param.shape, dtype=np.float32)
    return values * np.float32(param.std)


def parameter_count(config: ModelConfig) -> int:
    """Number of trained values; what is tied counts once."""
    return sum(p.size for p in parameters(config) if p.tied_to is None)

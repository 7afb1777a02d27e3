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
    role: Literal["embedding", "matrix", "head", "vector"]
    """What it does: rows that are looked up; a map inside a block; the map to the logits; a scale or a bias. Optimizers
    that treat matrices as such (Muon) take role ``matrix``."""
    stacked: tuple[int, ...] = ()
    """Output rows of the separate maps that one matrix holds: queries, keys and values. Empty: it is one map."""
    lr_scale: float = 1.0
    """Factor on AdamW's learning rate: muP's, for widths other than the tuned one."""
    tied_to: str | None = None
    """Name of the parameter whose storage this one shares; a tied parameter is stored once, under that name."""

    @property
    def lookup(self) -> bool:
        """Whether rows are looked up instead of multiplied."""
        return self.role == "embedding"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parameters(config: ModelConfig) -> tuple[Param, ...]:
    """All parameters in the order of the forward pass, tied ones included.

    Initialisation is GPT-2's (Radford et al. 2019, section 2.3): N(0, 0.02), and 0.02 / sqrt(2 L) for the matrices
    that write into the residual stream, so that the sum of 2 L branches keeps its scale. Under muP (Yang et al. 2022,
    table 8) the variance of matrices inside blocks and AdamW's rate for them fall as 1 / width.
    """
    width, hidden = config.n_embd, config.hidden
    query, key = config.n_head * config.head_width, config.n_kv_head * config.head_width
    matrix_std = 0.02 / math.sqrt(config.width_ratio)
    residual_std = 0.0 if config.residual_init == "zero" else matrix_std / math.sqrt(2 * config.n_layer)
    table: list[Param] = []

    def matrix(name: str, out: int, into: int, std: float = matrix_std, stacked: tuple[int, ...] = ()) -> None:
        table.append(
            Param(
                name=f"{name}.weight",
                shape=(out, into),
                init="normal" if std else "zeros",
                std=std,
                decay=True,
                role="matrix",
                stacked=stacked,
                lr_scale=1.0 / config.width_ratio,
            )
        )
        if config.bias:
            vector(f"{name}.bias", out, "zeros")

    def vector(name: str, size: int, init: Literal["ones", "zeros"]) -> None:
        table.append(Param(name=name, shape=(size,), init=init, decay=False, role="vector"))

    def norm(name: str) -> None:
        if not config.norm.scale:
            return
        vector(f"{name}.weight", width, "ones")
        if config.bias and config.norm.kind == "layernorm":
            vector(f"{name}.bias", width, "zeros")

    def embedding(name: str, rows: int) -> None:
        table.append(Param(name=name, shape=(rows, width), init="normal", std=0.02, decay=True, role="embedding"))

    embedding("transformer.wte.weight", config.vocabulary_rows)
    if config.position.kind == "learned":
        embedding("transformer.wpe.weight", config.block_size)
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        norm(f"{block}.ln_1")
        matrix(f"{block}.attn.c_attn", query + 2 * key, width, stacked=(query, key, key))
        matrix(f"{block}.attn.c_proj", width, query, residual_std)
        norm(f"{block}.ln_2")
        if config.mlp.kind == "swiglu":
            matrix(f"{block}.mlp.c_gate", hidden, width)
        matrix(f"{block}.mlp.c_fc", hidden, width)
        matrix(f"{block}.mlp.c_proj", width, hidden, residual_std)
    norm("transformer.ln_f")
    table.append(
        Param(
            name="lm_head.weight",
            shape=(config.vocabulary_rows, width),
            init="normal",
            std=0.02,
            decay=True,
            role="head",
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

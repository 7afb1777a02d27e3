"""The model's contract: every parameter's name, shape, initial values, decay and tying, for all engines.

Names are nanoGPT's (``transformer.h.0.attn.c_attn.weight``); matrices are (out, in). Initial values are a function
of (seed, name) made with NumPy, so both engines start from equal weights and any part can be made alone.

The letters that tensors carry as suffixes, one legend for all files (``q_BHTK``):

    B  batch              D  width of the residual stream (n_embd)     F  hidden units of the MLP
    T  time (new tokens)  H  query heads (n_head)                      V  vocabulary
    S  cache slots        G  key/value heads (n_kv_head)               L  layers (n_layer)
    C  latent channels    K  width of a head (D / H)                   R  channels that turn with the position
    E  experts            N  tokens of a batch, all its rows
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from bonsaigpt.config import ModelConfig, SoftmaxAttention
from bonsaigpt.randomness import generator
from bonsaigpt.structure import Structure, structures

__all__ = ["Param", "initial_value", "parameter_count", "parameters"]

Role: TypeAlias = Literal["embedding", "matrix", "head", "vector", "factor"]


@dataclass(frozen=True, kw_only=True)
class Param:
    """One parameter of the model."""

    name: str
    """Dotted path, equal to the key in ``model.safetensors``."""
    shape: tuple[int, ...]
    init: Literal["normal", "ones", "zeros"]
    std: float = 0.0
    """Standard deviation of a normal initialisation."""
    decay: float
    """Share of the weight decay that applies: 1 for matrices and embeddings, 0 for vectors, as GPT-2 and nanoGPT have
    it. The factors of a structured weight share it out, so that their product decays as a dense matrix does."""
    role: Role
    """What it does: rows that are looked up; a map inside a block; the map to the logits, or a router's to those of its
    experts; a scale or a bias; a part of a structured weight. Optimizers that treat matrices as such (Muon) take role
    ``matrix``: dense maps, and the two of a low-rank one, which are maps themselves. A Kronecker factor is none: its
    singular values, brought to one, would not be those of the product."""
    weight: str
    """The weight that it is, or is a factor of: the name in ``model.structure``."""
    stacked: tuple[int, ...] = ()
    """Output rows of the separate maps that one matrix holds: queries, keys and values; experts. Empty: it is one
    map."""
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
    width = config.n_embd
    matrix_std = 0.02 / math.sqrt(config.width_ratio)
    residual_std = 0.0 if config.residual_init == "zero" else matrix_std / math.sqrt(2 * config.n_layer)
    made = structures(config)
    table: list[Param] = []

    def weight(name: str, role: Role, std: float = 0.02, lr_scale: float = 1.0, stacked: tuple[int, ...] = ()) -> None:
        for param in _factor_params(name, made[name], role, std):
            table.append(replace(param, lr_scale=lr_scale, stacked=stacked if param.name == name else ()))

    def matrix(name: str, std: float = matrix_std, stacked: tuple[int, ...] = (), *, bias: bool = config.bias) -> None:
        weight(f"{name}.weight", "matrix", std, 1.0 / config.width_ratio, stacked)
        if bias:
            vector(f"{name}.bias", made[f"{name}.weight"].out, "zeros")

    def vector(name: str, size: int, init: Literal["ones", "zeros"]) -> None:
        table.append(Param(name=name, shape=(size,), init=init, decay=0.0, role="vector", weight=name))

    def norm(name: str) -> None:
        if not config.norm.scale:
            return
        vector(f"{name}.weight", width, "ones")
        if config.bias and config.norm.kind == "layernorm":
            vector(f"{name}.bias", width, "zeros")

    weight("transformer.wte.weight", "embedding")
    embedding = table[:]
    if config.position.kind == "learned":
        weight("transformer.wpe.weight", "embedding")
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        norm(f"{block}.ln_1")
        attention = config.attention
        softmax = attention if isinstance(attention, SoftmaxAttention) else None
        has_bias = config.bias or (softmax is not None and softmax.qkv_bias)
        matrix(f"{block}.attn.c_attn", stacked=config.attention_maps(layer), bias=has_bias)
        if attention.kind == "latent":
            matrix(f"{block}.attn.c_up", stacked=(config.n_head * config.head_width,) * 2)
        if softmax is not None and softmax.qk_norm == "scaled":
            vector(f"{block}.attn.q_norm", config.head_width, "ones")
            if config.kv_source(layer) == layer:
                vector(f"{block}.attn.k_norm", config.head_width, "ones")
        if softmax is not None and softmax.sinks:
            vector(f"{block}.attn.sinks", config.n_head, "zeros")
        matrix(f"{block}.attn.c_proj", residual_std)
        norm(f"{block}.ln_2")
        parted = (config.hidden_of(layer),) * config.experts if config.experts > 1 else ()
        if config.experts > 1:
            weight(f"{block}.mlp.router.weight", "head")
        if config.one_mlp.kind == "swiglu":
            matrix(f"{block}.mlp.c_gate", stacked=parted)
        matrix(f"{block}.mlp.c_fc", stacked=parted)
        matrix(f"{block}.mlp.c_proj", residual_std)
    norm("transformer.ln_f")
    if config.tie_embeddings:
        for p in embedding:
            name = p.name.replace("transformer.wte.weight", "lm_head.weight")
            table.append(replace(p, name=name, weight="lm_head.weight", role="head", tied_to=p.name))
    else:
        weight("lm_head.weight", "head")
    return tuple(table)


def _factor_params(name: str, structure: Structure, role: Role, std: float) -> list[Param]:
    """The parameters that a weight is stored as. Normal values of the factors are alike in size, and the elements of
    their product, sums of so many terms, have ``std``. If that is 0 only the last factor is: of zeros alone no gradient
    would ever come."""
    normal = [factor.name for factor in structure.factors if factor.init == "normal" and factor.std is None]
    each = ((std or 0.02) / math.sqrt(structure.terms)) ** (1 / len(normal))
    found: list[Param] = []
    for factor in structure.factors:
        is_zero = factor.init == "zeros" or (std == 0.0 and factor.name == normal[-1])
        own = role if not structure.factored or (role == "matrix" and factor.matrix) else "factor"
        found.append(
            Param(
                name=factor.key(name),
                shape=factor.shape,
                init="zeros" if is_zero else factor.init,
                std=0.0 if factor.init != "normal" or is_zero else each if factor.std is None else factor.std,
                decay=0.0 if factor.init == "ones" else 1.0 / len(normal) if factor.name in normal else 1.0,
                role=own,
                weight=name,
            )
        )
    return found


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

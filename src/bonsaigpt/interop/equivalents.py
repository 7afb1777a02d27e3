"""The same function under other settings of ours: what a model is turned into before another program's format has a
word for it. Every step is exact, up to the rounding of a division by muP's multiplier.

Settings and values are turned separately (``plain_config``, ``moved``), so that it costs nothing to ask whether a
family could say a model.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import (
    LearnedPosition,
    ModelConfig,
    NoScaling,
    NTKScaling,
    RopePosition,
    SoftmaxAttention,
)
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.structure import merge

__all__ = ["moved", "plain_config"]

_WTE, _WPE, _HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"


def plain_config(config: ModelConfig, wants: Set[str] = frozenset()) -> ModelConfig:
    """The settings without what only we have: structures, MLPs of unequal width, padding, muP's multiplier, norms
    without a scale, RoPE over neighbours, NTK's factor.

    Args:
        wants: what the format always has, to be added where it changes nothing: ``biases`` of zero; ``positions`` of
            zero where there are none; ``qk_factors`` of one where queries and keys are normalised; ``qkv_biases`` of
            zero.
    """
    changes: dict[str, Any] = {"preset": None, "residual_init": "scaled", "mup_base": None, "vocab_multiple": 1}
    changes["structure"] = {}
    widest = max(config.hidden_of(layer) for layer in range(config.n_layer))
    changes["mlp"] = config.mlp.model_copy(update={"hidden": widest})
    changes["norm"] = config.norm.model_copy(update={"scale": True})
    attention = config.attention
    if isinstance(attention, SoftmaxAttention):
        if "qk_factors" in wants and attention.qk_norm:
            attention = attention.model_copy(update={"qk_norm": "scaled"})
        if "qkv_biases" in wants:
            attention = attention.model_copy(update={"qkv_bias": True})
        changes["attention"] = attention
        if isinstance(config.position, RopePosition):
            changes["position"] = _plain_rope(config.position, config.rope_width)
    if "biases" in wants:
        changes["bias"] = True
    if "positions" in wants and config.position.kind == "none":
        changes["position"] = LearnedPosition()
    return config.model_copy(update=changes)


def _plain_rope(position: RopePosition, width: int) -> RopePosition:
    if isinstance(scaling := position.scaling, NTKScaling):
        theta = position.theta * scaling.factor ** (width / (width - 2))  # see torch_engine/rope.py
        position = position.model_copy(update={"theta": theta, "scaling": NoScaling()})
    return position.model_copy(update={"pairs": "halves"})


def moved(values: Arrays, old: ModelConfig, new: ModelConfig) -> Arrays:
    """The weights of a model under other settings, which ``plain_config`` made of the ``old`` ones."""
    _, values = merge(old, values)
    for name in (_WTE, _HEAD):
        if name in values:
            values[name] = values[name][: new.vocabulary]
    for layer in range(old.n_layer):
        _widen(values, f"transformer.h.{layer}.mlp", new.hidden - old.hidden_of(layer))
    for param in parameters(new):
        if param.tied_to is None and param.name not in values:
            of_zero = param.name == _WPE  # the only one whose fresh values are neither ones nor zeros
            fresh = np.zeros(param.shape, np.float32) if of_zero else initial_value(param, 0)
            values[param.name] = fresh
    if old.width_ratio != 1.0:  # in front of the head stands the last norm
        for name in ("transformer.ln_f.weight", "transformer.ln_f.bias"):
            if name in values:
                values[name] = (values[name] / np.float64(old.width_ratio)).astype(np.float32)
    if isinstance(old.position, RopePosition) and old.position.pairs == "neighbours":
        for layer in range(old.n_layer):
            _turn_halves(values, old, layer)
    return values


def _widen(values: Arrays, mlp: str, more: int) -> None:
    """Hidden units that stay at zero, and that nothing reads."""
    for name in (f"{mlp}.{part}.{leaf}" for part in ("c_gate", "c_fc") for leaf in ("weight", "bias")):
        if name in values and more:
            values[name] = np.concatenate([values[name], np.zeros((more, *values[name].shape[1:]), np.float32)])
    reading = values[f"{mlp}.c_proj.weight"]
    if more:
        values[f"{mlp}.c_proj.weight"] = np.pad(reading, ((0, 0), (0, more)))


def _turn_halves(values: Arrays, config: ModelConfig, layer: int) -> None:
    """Channels 2i and 2i + 1 of every query and key to i and i + K/2: their products do not notice."""
    path, width = f"transformer.h.{layer}.attn", config.head_width
    order = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])
    turned = config.n_head + (config.n_kv_head if config.kv_source(layer) == layer else 0)
    rows = (np.arange(turned)[:, None] * width + order).ravel()
    for name in (f"{path}.c_attn.weight", f"{path}.c_attn.bias"):
        if name in values:
            values[name] = np.concatenate([values[name][rows], values[name][len(rows) :]])
    for name in (f"{path}.q_norm", f"{path}.k_norm"):
        if name in values:
            values[name] = values[name][order]

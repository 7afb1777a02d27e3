"""Every block variant of the model, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

from bonsaigpt.config import ModelConfig, validate

__all__ = ["EAGER_ONLY", "NO_POLICY", "VARIANTS", "variant"]

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"bias": True},
    "no bias": {},
    "post-norm": {"norm_position": "post"},
    "untied": {"tie_embeddings": False},
    "tanh gelu": {"mlp": {"kind": "gelu", "approximate": "tanh"}},
    "swiglu": {"mlp": {"kind": "swiglu"}},
    "relu2": {"mlp": {"kind": "relu2"}},
    "rmsnorm": {"norm": {"kind": "rmsnorm"}},
    "rope": {"position": {"kind": "rope"}},
    "rope, neighbours": {"position": {"kind": "rope", "pairs": "neighbours"}},
    "norm without scale": {"norm": {"kind": "rmsnorm", "scale": False}},
    "soft cap, padded vocabulary": {"logit_softcap": 3.0, "vocab_multiple": 8},
    "no position": {"position": {"kind": "none"}},
    "qk-norm": {"attention": {"qk_norm": True}},
    "qk-norm with factors, wide heads": {
        "attention": {"qk_norm": "scaled", "head_width": 12, "n_kv_head": 2},
        "position": {"kind": "rope"},
        "n_embd": 30,
    },
    "biases of queries, keys and values": {"attention": {"qkv_bias": True, "n_kv_head": 2}},
    "grouped queries": {"attention": {"n_kv_head": 2}},
    "multi-query": {"attention": {"n_kv_head": 1}},
    "sliding windows": {"attention": {"window": 5, "pattern": "SL"}, "position": {"kind": "rope"}},
    "sinks": {"attention": {"sinks": True, "n_kv_head": 2}},
    "sinks in windows": {
        "attention": {"window": 9, "sinks": True, "qk_norm": True},
        "position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 2.0, "original": 12}},
    },
    "rope, linear": {"position": {"kind": "rope", "scaling": {"kind": "linear", "factor": 2.0}}},
    "rope, yarn": {"position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 2.0, "original": 12}}},
    "rope, ntk": {"position": {"kind": "rope", "scaling": {"kind": "ntk", "factor": 2.0}}},
    "rope, llama3": {"position": {"kind": "rope", "scaling": {"kind": "llama3", "factor": 4.0, "original": 96}}},
    "shared keys and values": {"attention": {"share_kv": 2, "n_kv_head": 2, "qk_norm": True}},
    "shared, in windows": {
        "attention": {"share_kv": 3, "window": 7, "pattern": "LS", "sinks": True},
        "position": {"kind": "rope"},
        "bias": True,
    },
    "latent": {"attention": {"kind": "latent"}, "position": {"kind": "rope"}, "bias": True},
    "latent, yarn": {
        "attention": {"kind": "latent", "latent": 12, "rope_width": 6},
        "position": {"kind": "rope", "scaling": {"kind": "yarn", "factor": 2.0, "original": 12}},
    },
    "latent, learned positions": {"attention": {"kind": "latent"}},
    "linear": {"attention": {"kind": "linear"}},
    "linear, rope": {"attention": {"kind": "linear"}, "position": {"kind": "rope", "pairs": "neighbours"}},
    "linear, layer-norm": {"attention": {"kind": "linear", "form": "layernorm"}, "bias": True},
    "modern": {
        "mlp": {"kind": "relu2"},
        "norm": {"kind": "rmsnorm"},
        "position": {"kind": "rope"},
        "attention": {"n_kv_head": 2, "qk_norm": True},
        "tie_embeddings": False,
    },
    "experts": {"mlp": {"kind": "moe", "experts": 3, "each": {"kind": "swiglu"}}, "bias": True},
    "structured": {
        "structure": {
            "*.c_fc.weight": {"kind": "kronecker", "a_shape": [16, 8], "terms": 3},
            "*.0.mlp.c_proj.weight": {"kind": "lowrank", "rank": 6},
            "*.1.attn.c_attn.weight": {"kind": "monarch", "a_shape": [12, 4]},
            "*.2.mlp": {"kind": "narrow", "hidden": 80},
            "transformer.wte.weight": {"kind": "lowrank", "rank": 8},
        }
    },
}

EAGER_ONLY = {name for name in VARIANTS if name.startswith(("shared", "latent", "linear", "experts"))}
"""What decode.cpp does not compute."""

NO_POLICY = {name for name in VARIANTS if name.startswith(("latent", "linear"))}
"""Attention that no cache policy knows."""


def variant(name: str, **changes: Any) -> ModelConfig:
    """A small model of one variant."""
    settings = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 17}
    return validate({"model": settings | VARIANTS[name] | changes}, origin="variant").model

"""Every block variant of the model, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

from bonsaigpt.config import ModelConfig, validate

__all__ = ["VARIANTS", "variant"]

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
    "grouped queries": {"attention": {"n_kv_head": 2}},
    "multi-query": {"attention": {"n_kv_head": 1}},
    "modern": {
        "mlp": {"kind": "relu2"},
        "norm": {"kind": "rmsnorm"},
        "position": {"kind": "rope"},
        "attention": {"n_kv_head": 2, "qk_norm": True},
        "tie_embeddings": False,
    },
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


def variant(name: str, **changes: Any) -> ModelConfig:
    """A small model of one variant."""
    settings = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 17}
    return validate({"model": settings | VARIANTS[name] | changes}, origin="variant").model

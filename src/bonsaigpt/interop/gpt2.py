"""GPT-2's names and settings; its Conv1D matrices are (in, out), ours (out, in)."""

from __future__ import annotations

from bonsaigpt.config import GeluMLP, ModelConfig
from bonsaigpt.interop.family import Family, Settings, Unmapped, refuse

__all__ = ["GPT2", "activation", "plain_mlp"]

_ACTIVATIONS = {
    "gelu_new": {"kind": "gelu", "approximate": "tanh"},
    "gelu_pytorch_tanh": {"kind": "gelu", "approximate": "tanh"},
    "gelu": {"kind": "gelu", "approximate": "none"},
    "relu2": {"kind": "relu2"},
}


def plain_mlp(activation: str) -> Settings:
    if activation not in _ACTIVATIONS:
        raise Unmapped(f"the activation '{activation}'")
    return dict(_ACTIVATIONS[activation])


def activation(config: ModelConfig) -> str:
    if isinstance(config.mlp, GeluMLP):
        return "gelu_pytorch_tanh" if config.mlp.approximate == "tanh" else "gelu"
    return config.mlp.kind  # relu2; of swiglu there is none


def _read_gpt2(theirs: Settings) -> Settings:
    refuse(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "n_layer": theirs["n_layer"],
        "n_head": theirs["n_head"],
        "n_embd": theirs["n_embd"],
        "block_size": theirs["n_positions"],
        "vocab_size": theirs["vocab_size"],
        "bias": True,
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "mlp": plain_mlp(theirs.get("activation_function", "gelu_new")) | {"hidden": theirs.get("n_inner")},
        "norm": {"kind": "layernorm", "eps": theirs.get("layer_norm_epsilon", 1e-5)},
    }


def _write_gpt2(config: ModelConfig) -> Settings:
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.hidden,
        "n_positions": config.block_size,
        "vocab_size": config.vocabulary,
        "activation_function": activation(config),
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


_GPT2_BLOCK = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    modules={
        **{name: (f"transformer.h.{{}}.{name}",) for name in _GPT2_BLOCK},
        **{name: (name,) for name in ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")},
    },
    read=_read_gpt2,
    write=_write_gpt2,
    transposed=True,
    left_out="transformer.",
    buffers=(".attn.bias", ".attn.masked_bias"),
    wants=frozenset({"biases", "positions"}),
)

"""Llama and its relatives: the same names, and settings that differ in a few places each."""

from __future__ import annotations

import math
from typing import Any

from bonsaigpt.config import ModelConfig, RopePosition, SoftmaxAttention
from bonsaigpt.interop.family import Family, Settings, Unmapped, refuse
from bonsaigpt.interop.gpt2 import activation, plain_mlp

__all__ = ["LLAMAS"]

_LLAMA = {
    "transformer.wte": ("model.embed_tokens",),
    "ln_1": ("model.layers.{}.input_layernorm",),
    "attn.c_attn": tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    "attn.q_norm": ("model.layers.{}.self_attn.q_norm",),
    "attn.k_norm": ("model.layers.{}.self_attn.k_norm",),
    "attn.c_proj": ("model.layers.{}.self_attn.o_proj",),
    "ln_2": ("model.layers.{}.post_attention_layernorm",),
    "mlp.c_gate": ("model.layers.{}.mlp.gate_proj",),
    "mlp.c_fc": ("model.layers.{}.mlp.up_proj",),
    "mlp.c_proj": ("model.layers.{}.mlp.down_proj",),
    "transformer.ln_f": ("model.norm",),
    "lm_head": ("lm_head",),
}
_STARCODER = {name: theirs for name, theirs in _LLAMA.items() if name not in ("mlp.c_gate", "attn.q_norm")} | {
    "mlp.c_fc": ("model.layers.{}.mlp.c_fc",),
    "mlp.c_proj": ("model.layers.{}.mlp.c_proj",),
}
_GATES = {"silu": "swiglu", "relu": "relu2"}


def _read_relative(theirs: Settings) -> Settings:
    """What all relatives of Llama say alike."""
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    own_width = theirs.get("head_dim")
    return {
        "n_layer": theirs["num_hidden_layers"],
        "n_head": heads,
        "n_embd": width,
        "block_size": theirs["max_position_embeddings"],
        "vocab_size": theirs["vocab_size"],
        "bias": False,
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "mlp": {"kind": "swiglu", "hidden": theirs["intermediate_size"]},
        "position": {"kind": "rope", **_read_rope(theirs)},
        "norm": {"kind": "rmsnorm", "eps": theirs.get("rms_norm_eps", 1e-6)},
        "attention": {
            "kind": "softmax",
            "n_kv_head": theirs.get("num_key_value_heads") or heads,
            "head_width": own_width if own_width is not None and own_width * heads != width else None,
        },
    }


def _write_relative(config: ModelConfig) -> Settings:
    assert isinstance(config.attention, SoftmaxAttention)
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_width,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocabulary,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": {kind: act for act, kind in _GATES.items()}.get(config.mlp.kind, config.mlp.kind),
        "attention_dropout": config.dropout,
        **_write_rope(config),
    }


def _gated_mlp(theirs: Settings) -> Settings:
    activation = theirs.get("hidden_act", "silu")
    if activation not in _GATES:
        raise Unmapped(f"hidden_act = '{activation}'")
    return {"kind": _GATES[activation], "hidden": theirs["intermediate_size"]}


def _read_rope(theirs: Settings) -> Settings:
    """Base and scaling, in the older spelling (rope_theta, rope_scaling) and in that of transformers 5."""
    given = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in given.values()):
        raise Unmapped(f"rope_parameters for each kind of layer ({', '.join(given)})")
    refuse(theirs, partial_rotary_factor=1.0)
    refuse(given, partial_rotary_factor=1.0)
    kind = given.get("rope_type", given.get("type", "default"))
    original = given.get("original_max_position_embeddings", theirs["max_position_embeddings"])
    if kind == "default":
        scaling: Settings = {"kind": "none"}
    elif kind == "linear":
        scaling = {"kind": "linear", "factor": given["factor"]}
    elif kind == "llama3":
        slow, fast = given["low_freq_factor"], given["high_freq_factor"]
        scaling = {"kind": "llama3", "factor": given["factor"], "original": original, "slow": slow, "fast": fast}
    elif kind == "yarn":
        refuse(given, mscale=None, mscale_all_dim=None, truncate=True)
        factor, sharpness = given["factor"], given.get("attention_factor")
        if sharpness is not None and not math.isclose(sharpness, 0.1 * math.log(factor) + 1.0, rel_tol=1e-6):
            raise Unmapped(f"attention_factor = {sharpness!r} in rope_scaling")
        turns = {"slow": given.get("beta_slow") or 1.0, "fast": given.get("beta_fast") or 32.0}
        scaling = {"kind": "yarn", "factor": factor, "original": original, **turns}
    else:
        raise Unmapped(f"rope_type = '{kind}'")
    return {"theta": given.get("rope_theta", theirs.get("rope_theta", 10000.0)), "scaling": scaling}


def _write_rope(config: ModelConfig) -> Settings:
    if not isinstance(config.position, RopePosition):
        return {}
    scaling = config.position.scaling.model_dump()
    names = {"original": "original_max_position_embeddings"}
    names |= {"slow": "low_freq_factor", "fast": "high_freq_factor"} if scaling["kind"] == "llama3" else {}
    names |= {"slow": "beta_slow", "fast": "beta_fast"} if scaling["kind"] == "yarn" else {}
    spelt = {names.get(name, name): value for name, value in scaling.items() if name != "kind"}
    scaled = scaling["kind"] != "none"
    return {
        "rope_theta": config.position.theta,
        "rope_scaling": {"rope_type": scaling["kind"], **spelt} if scaled else None,
    }


def _read_llama(theirs: Settings) -> Settings:
    found = _read_relative(theirs)
    attention, mlp = theirs.get("attention_bias", False), theirs.get("mlp_bias", False)
    if attention != mlp:
        raise Unmapped(f"attention_bias = {attention} with mlp_bias = {mlp}")
    return found | {"bias": attention, "mlp": _gated_mlp(theirs)}


def _write_llama(config: ModelConfig) -> Settings:
    return _write_relative(config) | {"attention_bias": config.bias, "mlp_bias": config.bias}


def _read_mistral(theirs: Settings) -> Settings:
    found = _read_relative(theirs) | {"mlp": _gated_mlp(theirs)}
    found["attention"]["window"] = theirs.get("sliding_window", 4096)
    return found


def _write_mistral(config: ModelConfig) -> Settings:
    assert isinstance(config.attention, SoftmaxAttention)
    return _write_relative(config) | {"sliding_window": config.attention.window}


def _read_qwen2(theirs: Settings) -> Settings:
    found = _read_relative(theirs) | {"mlp": _gated_mlp(theirs)}
    window = theirs.get("sliding_window", 4096) if theirs.get("use_sliding_window") else None
    if window is not None:
        begin = theirs.get("max_window_layers", 28)
        kinds = ["sliding_attention" if n >= begin else "full_attention" for n in range(theirs["num_hidden_layers"])]
        kinds = theirs.get("layer_types") or kinds
        found["attention"] |= {"window": window, "pattern": "".join("S" if k[0] == "s" else "L" for k in kinds)}
    found["attention"]["qkv_bias"] = True
    return found


def _write_qwen2(config: ModelConfig) -> Settings:
    assert isinstance(config.attention, SoftmaxAttention)
    windows = [config.attention.window_of(layer) for layer in range(config.n_layer)]
    return _write_relative(config) | {
        "use_sliding_window": any(windows),
        "sliding_window": config.attention.window if any(windows) else None,
        "max_window_layers": config.n_layer,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _read_qwen3(theirs: Settings) -> Settings:
    refuse(theirs, attention_bias=False)
    found = _read_qwen2({"head_dim": 128} | theirs)
    found["attention"] |= {"qkv_bias": False, "qk_norm": "scaled"}
    return found


def _write_qwen3(config: ModelConfig) -> Settings:
    return _write_qwen2(config) | {"attention_bias": False}


def _read_starcoder2(theirs: Settings) -> Settings:
    refuse(theirs, use_bias=True)
    hidden = {"hidden": theirs["intermediate_size"]}
    found = _read_relative(theirs | {"head_dim": None}) | {
        "bias": True,
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "mlp": plain_mlp(theirs.get("hidden_act", "gelu_pytorch_tanh")) | hidden,
        "norm": {"kind": "layernorm", "eps": theirs.get("norm_epsilon", 1e-5)},
    }
    found["attention"]["window"] = theirs.get("sliding_window")
    return found


def _write_starcoder2(config: ModelConfig) -> Settings:
    assert isinstance(config.attention, SoftmaxAttention)
    written = _write_relative(config)
    for name in ("rms_norm_eps", "head_dim"):
        written.pop(name)
    return written | {
        "use_bias": True,
        "norm_epsilon": config.norm.eps,
        "hidden_act": activation(config),
        "sliding_window": config.attention.window,
        "embedding_dropout": config.dropout,
        "residual_dropout": config.dropout,
    }


def _relative(model_type: str, architecture: str, read: Any, write: Any, **more: Any) -> Family:
    return Family(
        model_type=model_type,
        architecture=f"{architecture}ForCausalLM",
        modules=more.pop("modules", _LLAMA),
        read=read,
        write=write,
        left_out="model.",
        buffers=("rotary_emb.inv_freq",),
        **more,
    )


LLAMAS = (
    _relative("llama", "Llama", _read_llama, _write_llama),
    _relative("mistral", "Mistral", _read_mistral, _write_mistral),
    _relative("qwen3", "Qwen3", _read_qwen3, _write_qwen3, wants=frozenset({"qk_factors"})),
    _relative("qwen2", "Qwen2", _read_qwen2, _write_qwen2, wants=frozenset({"qkv_biases"})),
    _relative(
        "starcoder2",
        "Starcoder2",
        _read_starcoder2,
        _write_starcoder2,
        modules=_STARCODER,
        wants=frozenset({"biases"}),
    ),
)

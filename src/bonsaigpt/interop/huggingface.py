"""GPT-2 in Hugging Face's format to our names. Its Conv1D matrices are (in, out), ours (out, in)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from bonsaigpt.checkpoint import Arrays, check_weights
from bonsaigpt.config import GeluMLP, LayerNorm, ModelConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.spec import parameters

__all__ = ["from_state_dict", "is_gpt2_folder", "model_config", "read_gpt2"]

_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def is_gpt2_folder(path: Path) -> bool:
    """Whether the folder looks like a saved model of the transformers library."""
    return (path / "config.json").is_file() and not (path / "config.toml").exists()


def read_gpt2(path: Path) -> tuple[ModelConfig, Arrays]:
    """The configuration and weights of a GPT-2 folder (config.json and model.safetensors).

    Raises:
        CheckpointError: another architecture, a pickle, or damaged files.
    """
    try:
        config = dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}/config.json cannot be read ({error})") from None
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"{path} has no model.safetensors; pickled weights (.bin, .pt) are never loaded: convert them with "
            "save_pretrained(..., safe_serialization=True)"
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{weights} is damaged or not of float type ({error})") from None
    ours = model_config(config, origin=str(path))
    arrays = from_state_dict(tensors, ours)
    check_weights(arrays, ours, origin=str(path))
    return ours, arrays


def model_config(config: dict[str, Any], *, origin: str) -> ModelConfig:
    """Our configuration for one of theirs; what our blocks do not do is refused by name."""
    if config.get("model_type") != "gpt2":
        raise CheckpointError(f"{origin} is a '{config.get('model_type')}' model; only GPT-2 can be read so far")
    approximate = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
    activation = config.get("activation_function", "gelu_new")
    odd = [k for k in ("scale_attn_by_inverse_layer_idx", "add_cross_attention") if config.get(k)]
    if activation not in approximate or odd or config.get("scale_attn_weights", True) is False:
        raise CheckpointError(f"{origin} uses {', '.join(odd) or activation}, which GPT-2's blocks here do not have")
    try:
        return ModelConfig(
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            n_embd=config["n_embd"],
            block_size=config["n_positions"],
            vocab_size=config["vocab_size"],
            bias=True,
            tie_embeddings=config.get("tie_word_embeddings", True),
            mlp=GeluMLP(hidden=config.get("n_inner"), approximate=approximate[activation]),  # type: ignore[arg-type]
            norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        )
    except (KeyError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise CheckpointError(f"{origin}/config.json does not describe a GPT-2 ({error}): restore it") from None


def from_state_dict(tensors: dict[str, np.ndarray], config: ModelConfig) -> Arrays:
    """Their tensors under our names and orientation, float32; their mask buffers are left out."""
    named = {
        name if name.startswith(("transformer.", "lm_head")) else f"transformer.{name}": a
        for name, a in tensors.items()
    }
    arrays: Arrays = {}
    for param in parameters(config):
        if param.tied_to is None and param.name in named:
            array = named[param.name]
            turned = array.T if param.name.endswith(_TRANSPOSED) else array
            arrays[param.name] = np.ascontiguousarray(turned, dtype=np.float32)
    return arrays

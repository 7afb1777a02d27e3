"""Checkpoints of nanoGPT and minGPT (``.pt``), read without executing anything of them.

Their parameters have our names and our orientation. nanoGPT's file says what model it is (``model_args``); minGPT's is
a bare state_dict, whose number of heads stands in the ``config.json`` that it writes beside it, or follows from its
preset.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.checkpoint import Arrays, check_weights
from bonsaigpt.config import PRESETS, GeluMLP, LayerNorm, ModelConfig
from bonsaigpt.data.tokenizers import CharTokenizer, Tokenizer, open_tokenizer
from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop.pickled import Saved, read_pickle, read_torch

__all__ = ["is_torch_file", "read_torch_model", "tokenizer_beside"]

_MASKS = (".attn.bias", ".attn.masked_bias")


def is_torch_file(path: Path) -> bool:
    """Whether a file has the ending of torch.save's."""
    return path.is_file() and path.suffix in (".pt", ".pth")


def read_torch_model(path: Path) -> tuple[ModelConfig, Arrays]:
    """The configuration and the weights, float32, of a checkpoint of nanoGPT or minGPT.

    Raises:
        CheckpointError: another program's file, damaged, or one that names anything but tensors.
    """
    saved = read_torch(path)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds no dictionary: it is no checkpoint of nanoGPT or minGPT")
    state, told = saved.get("model", saved), saved.get("model_args")
    named = {str(n).removeprefix("_orig_mod."): t for n, t in state.items()} if isinstance(state, dict) else {}
    tensors = {n: t for n, t in named.items() if isinstance(t, Saved) and not n.endswith(_MASKS)}
    if "transformer.wte.weight" not in tensors or "transformer.wpe.weight" not in tensors:
        raise CheckpointError(f"{path} has no transformer.wte.weight: it is no checkpoint of nanoGPT or minGPT")
    config = _nanogpt(told, path) if told is not None else _mingpt(tensors, path)
    if config.n_layer > len(tensors):
        raise CheckpointError(f"{path} says {config.n_layer:,} layers and holds {len(tensors)} tensors: it is damaged")
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    arrays = {name: np.ascontiguousarray(tensor.read(), dtype=np.float32) for name, tensor in tensors.items()}
    check_weights(arrays, config, origin=str(path))
    return config, arrays


def _nanogpt(told: Any, path: Path) -> ModelConfig:
    try:
        sizes = {name: told[name] for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
        return ModelConfig(bias=told.get("bias", True), mlp=GeluMLP(), norm=LayerNorm(), **sizes)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise CheckpointError(f"model_args of {path} do not describe a nanoGPT ({error})") from None


def _mingpt(tensors: dict[str, Saved], path: Path) -> ModelConfig:
    layers = {int(found[1]) for n in tensors if (found := re.match(r"transformer\.h\.(\d+)\.", n))}
    (rows, width), (block, _) = (tensors[f"transformer.{table}.weight"].shape for table in ("wte", "wpe"))
    try:
        return ModelConfig(
            n_layer=len(layers),
            n_head=_heads(len(layers), width, path),
            n_embd=width,
            block_size=block,
            vocab_size=rows,
            bias=True,
            tie_embeddings=False,
            mlp=GeluMLP(approximate="tanh"),
            norm=LayerNorm(),
        )
    except ValueError as error:
        raise CheckpointError(f"{path} does not describe a minGPT ({error})") from None


def _heads(layers: int, width: int, path: Path) -> int:
    """What its config.json says, or the preset of that size has."""
    beside = path.with_name("config.json")
    told: Any = {}
    if beside.is_file():
        try:
            told = json.loads(beside.read_text(encoding="utf-8")).get("model", {})
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{beside} cannot be read ({error}): restore it") from None
    if isinstance(told, dict) and isinstance(told.get("n_head"), int):
        return told["n_head"]
    for preset in PRESETS.values():
        if (preset["n_layer"], preset["n_embd"]) == (layers, width):
            return preset["n_head"]
    raise CheckpointError(
        f"{path} is a bare state_dict and does not say how many heads a layer has: put minGPT's config.json beside it, "
        'or one with {"model": {"n_head": ...}}'
    )


def tokenizer_beside(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a tokenizer.json or GPT-2's two files in its folder, or nanoGPT's ``meta.pkl``.

    Raises:
        DataError: there is none.
        CheckpointError: it cannot be used.
    """
    meta = path.with_name("meta.pkl")
    if not meta.is_file():
        return open_tokenizer(path.parent)
    match read_pickle(meta):
        case {"itos": dict(itos)} if all(isinstance(c, str) and len(c) == 1 for c in itos.values()):
            characters = sorted(set(itos.values()))
            if itos == dict(enumerate(characters)):
                return CharTokenizer(characters)
    raise CheckpointError(f"{meta} has no characters in order of their code points (itos), as nanoGPT's has")

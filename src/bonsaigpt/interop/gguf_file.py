"""A model as one GGUF file, for llama.cpp and what is built on it (https://github.com/ggml-org/ggml, docs/gguf.md).

Names come from the ``gguf`` package's own table. llama.cpp knows fewer settings than transformers: its Llamas gate by
SiLU alone, its GELU is the tanh formula, these families have no windows. What it would compute otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import GeluMLP, ModelConfig, RopePosition, SoftmaxAttention
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.data.tokenizers.presplit import pattern_of
from bonsaigpt.errors import CheckpointError, DeviceError, OutputError
from bonsaigpt.files import file_aside
from bonsaigpt.interop.family import Family
from bonsaigpt.interop.tokenizer_files import tokenizer_json
from bonsaigpt.interop.writing import as_family

if TYPE_CHECKING:
    import gguf

__all__ = ["GGUFFormat", "write_gguf"]

GGUFFormat = Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"]
"""Of matrices; vectors are float32 always, as llama.cpp expects."""

_FORMATS: dict[GGUFFormat, tuple[str, int]] = {
    "fp32": ("F32", 0),
    "bf16": ("BF16", 32),
    "fp16": ("F16", 1),
    "q8_0": ("Q8_0", 7),
    "q4_0": ("Q4_0", 2),
}
"""GGML's word for a format, and for a file that has its matrices in it (LLAMA_FTYPE of llama.h)."""
_GROUP = 32
"""Numbers that q8_0 and q4_0 give one scale; a matrix whose rows do not divide into these stays fp16."""
_ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "starcoder2": "starcoder2"}
_SPLITS = {"gpt2": "gpt-2", "gpt4": "dbrx"}
"""Our patterns before merges, and llama.cpp's words for them (dbrx is the same expression as GPT-4's)."""

_NO_MERGE = "ĀĀ ĀĀ"
"""A rule that no text ever meets, as no rule makes its halves: llama.cpp refuses a file without any."""


def write_gguf(
    path: Path,
    config: ModelConfig,
    values: Arrays,
    tokenizer: Tokenizer,
    *,
    origin: str,
    name: str,
    dtype: GGUFFormat = "fp32",
) -> Family:
    """Write a model whole or not at all.

    Args:
        origin: what the model is called in messages.
        name: what it is called in the file.

    Raises:
        CheckpointError: llama.cpp cannot compute this model or read its tokenizer; what is in the way is named.
        DeviceError: the package ``gguf`` is not installed.
        OutputError: the file exists, or cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise DeviceError("GGUF files need the package gguf: pip install 'bonsaigpt[gguf]'") from None
    if path.exists():
        raise OutputError(f"{path} exists already: choose another place with --out, or remove it")
    family, plain, _, tensors = as_family(config, values, tokenizer, origin=origin)
    if (missing := _what_is_missing(family, plain)) is not None:
        raise CheckpointError(
            f"{origin} cannot be a GGUF file: llama.cpp's {family.model_type} lacks our {missing}. Export it with "
            "--to hf"
        )
    vocabulary = _vocabulary(tokenizer, plain.vocabulary, origin=origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        writer = gguf.GGUFWriter(aside, _ARCHITECTURES[family.model_type])
        writer.add_name(name)
        _say_settings(writer, plain)
        for key, value in vocabulary.items():
            getattr(writer, f"add_{key}")(value)
        writer.add_file_type(_FORMATS[dtype][1])
        for tensor, value in _named(family, plain, tensors):
            kind: GGUFFormat = "fp32" if value.ndim == 1 else dtype
            if kind in ("q8_0", "q4_0") and value.shape[-1] % _GROUP:
                kind = "fp16"
            spelt = gguf.GGMLQuantizationType[_FORMATS[kind][0]]
            data = gguf.quants.quantize(np.ascontiguousarray(value), spelt)
            writer.add_tensor(tensor, data, raw_dtype=spelt)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return family


def _what_is_missing(family: Family, config: ModelConfig) -> str | None:
    """The setting that llama.cpp would compute otherwise, and how it would; or None."""
    attention, position = config.attention, config.position
    assert isinstance(attention, SoftmaxAttention)
    if family.model_type in ("gpt2", "starcoder2"):
        if not isinstance(config.mlp, GeluMLP):
            return f"model.mlp.kind = '{config.mlp.kind}', and has 'gelu'"
        if config.mlp.approximate != "tanh":
            return f"model.mlp.approximate = '{config.mlp.approximate}', and has 'tanh'"
    elif config.mlp.kind != "swiglu":
        return f"model.mlp.kind = '{config.mlp.kind}', and has 'swiglu'"
    elif config.bias:
        return "model.bias = true, and has false"
    if attention.window is not None:
        return f"model.attention.window = {attention.window}, and has none"
    if isinstance(position, RopePosition) and position.scaling.kind not in ("none", "linear"):
        return f"model.position.scaling.kind = '{position.scaling.kind}', and has 'linear'"
    return None


def _say_settings(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    if config.norm.kind == "rmsnorm":
        writer.add_layer_norm_rms_eps(config.norm.eps)
    else:
        writer.add_layer_norm_eps(config.norm.eps)
    if isinstance(position := config.position, RopePosition):
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(position.theta)
        if position.scaling.kind == "linear":
            import gguf

            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(position.scaling.factor)


def _named(family: Family, config: ModelConfig, tensors: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under GGUF's name, (out, in)."""
    import gguf

    wanted = _ARCHITECTURES[family.model_type]
    [architecture] = [key for key, word in gguf.MODEL_ARCH_NAMES.items() if word == wanted]
    names = gguf.get_tensor_name_map(architecture, config.n_layer)
    for name, value in tensors.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        if family.transposed and value.ndim == 2 and ".h." in name:
            value = value.T
        if wanted == "llama" and found.rpartition(".")[0].endswith(("attn_q", "attn_k")):
            value = _neighbours(value, config.head_width)
        yield found, value


def _neighbours(value: np.ndarray, width: int) -> np.ndarray:
    """Rows of each head in the order in which llama.cpp turns those of a Llama: pairs side by side, not K/2 apart."""
    heads = value.reshape(-1, 2, width // 2, *value.shape[1:])
    return heads.swapaxes(1, 2).reshape(value.shape)


def _vocabulary(tokenizer: Tokenizer, rows: int, *, origin: str) -> dict[str, Any]:
    """The tokenizer as methods of the writer, without ``add_``, and their arguments."""
    if tokenizer.end_of_text is None:
        raise CheckpointError(
            f"{origin} cannot be a GGUF file: its tokenizer ({tokenizer.kind}) has no end of a text, and llama.cpp "
            "would take token 11 for one. Export it with --to hf, or train with --data.tokenizer.kind bytes or bpe"
        )
    data = tokenizer_json(tokenizer)
    if "merges" not in data["model"]:
        raise CheckpointError(
            f"{origin} cannot be a GGUF file: its tokenizer ({tokenizer.kind}) is no byte-level BPE. Export it with "
            "--to hf"
        )
    named = data["model"]["vocab"] | {token["content"]: token["id"] for token in data["added_tokens"]}
    tokens = sorted(named, key=lambda token: named[token])
    merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in data["model"]["merges"]]
    special = set(tokenizer.special_tokens.values())
    kinds = [3 if index in special else 1 for index in range(len(tokens))]  # CONTROL and NORMAL of llama.h
    unused = rows - len(tokens)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": _split_of(data, origin=origin),
        "token_list": tokens + [f"<unused {n}>" for n in range(unused)],
        "token_types": kinds + [5] * unused,
        "token_merges": merges or [_NO_MERGE],
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "add_bos_token": False,
    }


def _split_of(data: dict[str, Any], *, origin: str) -> str:

    if not data["model"]["merges"]:
        return "gpt-2"
    found = pattern_of(data.get("pre_tokenizer"))
    if found is None or data.get("normalizer"):
        raise CheckpointError(
            f"{origin} cannot be a GGUF file: its tokenizer splits or changes text in a way that has no name there. "
            "Export it with --to hf"
        )
    return _SPLITS[found]

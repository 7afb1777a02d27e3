"""A model written as a folder in Hugging Face's format, which their stock classes load without any code of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import CheckpointError, OutputError
from bonsaigpt.files import folder_aside, replace_folder
from bonsaigpt.interop.equivalents import moved, plain_config
from bonsaigpt.interop.families import FAMILIES, differences
from bonsaigpt.interop.family import Family, entries
from bonsaigpt.interop.tensor_files import FloatFormat, write_tensors
from bonsaigpt.interop.tokenizer_files import tokenizer_config, tokenizer_json

__all__ = ["as_family", "family_for", "write_folder", "write_texts"]

_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def family_for(config: ModelConfig, *, origin: str) -> tuple[Family, ModelConfig]:
    """The family that can say a model, and its settings in that family's terms.

    Raises:
        CheckpointError: there is none; the message names the settings that are in the way of the nearest one.
    """
    found: list[tuple[list[str], Family, ModelConfig]] = []
    for family in FAMILIES.values():
        plain = plain_config(config, family.wants)
        missing = differences(family, plain)
        if not missing:
            return family, plain
        found.append((missing, family, plain))
    missing, family, _ = min(found, key=lambda each: len(each[0]))
    raise CheckpointError(
        f"{origin} cannot be a stock model of transformers: the nearest is {family.architecture}, which lacks our "
        f"{', '.join(missing)}. Train it without"
    )


def as_family(
    config: ModelConfig, values: Arrays, tokenizer: Tokenizer, *, origin: str
) -> tuple[Family, ModelConfig, dict[str, Any], Arrays]:
    """A model in another's terms: the family, our settings for it, its ``config.json``, and its tensors."""
    family, plain = family_for(config, origin=origin)
    values = moved(values, config, plain)
    tensors = {name: a for entry in entries(family, plain) for name, a in entry.split(values[entry.ours]).items()}
    end = tokenizer.end_of_text
    told = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.write(plain),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
    }
    return family, plain, told, tensors


def write_folder(
    folder: Path,
    config: ModelConfig,
    values: Arrays,
    tokenizer: Tokenizer,
    *,
    origin: str,
    card: str,
    dtype: FloatFormat = "fp32",
) -> Family:
    """Write a model: config.json, model.safetensors, the tokenizer, generation_config.json, README.md; whole or not at
    all.

    Args:
        origin: what the model is called in messages.
        card: the text of README.md.

    Raises:
        CheckpointError: no family of theirs can say this model; the settings in the way are named.
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"{folder} exists already: choose another place with --out, or remove it")
    family, _, told, tensors = as_family(config, values, tokenizer, origin=origin)
    end = tokenizer.end_of_text
    files = {
        "config.json": told | {"torch_dtype": _TORCH[dtype]},
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end},
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config(tokenizer, config.block_size),
    }
    with folder_aside(folder) as aside:
        write_texts(aside, files, card)
        write_tensors(aside / "model.safetensors", tensors, dtype)
        replace_folder(aside, folder)
    return family


def write_texts(folder: Path, files: Mapping[str, Any], card: str) -> None:
    """The files that are JSON, by name, and the card as README.md."""
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=name != "tokenizer.json")
        (folder / name).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")

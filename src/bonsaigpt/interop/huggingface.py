"""A model's folder in Hugging Face's format, read without their library: settings, weights, tokenizer.

Nothing of the folder is executed (``auto_map``, pickles), no file outside it is opened, and what it says of itself is
checked before it is believed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop.families import FAMILIES
from bonsaigpt.interop.family import Family, Unmapped, entries
from bonsaigpt.interop.tensor_files import Stored, stored_tensors

__all__ = ["is_model_folder", "model_config", "read_folder"]


def is_model_folder(path: Path) -> bool:
    """Whether the folder looks like a saved model of the transformers library."""
    return (path / "config.json").is_file() and not (path / "config.toml").exists()


def read_folder(folder: Path) -> tuple[ModelConfig, Arrays]:
    """The configuration and the weights of a model's folder, float32.

    Raises:
        CheckpointError: a family or a setting that is not known here, a pickle, files that are damaged or that
            contradict each other; the message names what.
    """
    try:
        theirs = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read ({error})") from None
    family, config = model_config(theirs, origin=str(folder))
    stored = _under_full_names(family, stored_tensors(folder))
    _check_sizes(config, stored, origin=str(folder))
    arrays: Arrays = {}
    for entry in entries(family, config):
        for name, shape in zip(entry.theirs, entry.shapes, strict=True):
            if name not in stored:
                raise CheckpointError(f"{folder} has no tensor {name}, which its config.json calls for: restore it")
            if stored[name].shape != shape:
                raise CheckpointError(
                    f"{name} of {folder} has shape {stored[name].shape}, its config.json says {shape}: restore it"
                )
        arrays[entry.ours] = entry.join([stored.pop(name).read() for name in entry.theirs], origin=str(folder))
    if config.tie_embeddings:
        stored.pop("lm_head.weight", None)  # a copy
    if left := sorted(name for name in stored if not name.endswith(family.buffers)):
        raise CheckpointError(f"{folder} holds {left[0]}, which a {family.model_type} of its config.json does not have")
    return config, arrays


def model_config(theirs: dict[str, Any], *, origin: str) -> tuple[Family, ModelConfig]:
    """The family and our configuration of a ``config.json``; what our blocks do not do is refused by name."""
    name = str(theirs.get("model_type"))
    if name not in FAMILIES:
        raise CheckpointError(f"{origin} is a '{name}' model: {', '.join(FAMILIES)} can be read (SmolLM is a llama)")
    if theirs.get("quantization_config"):
        raise CheckpointError(f"{origin} is quantised (quantization_config): fetch or save the model in whole numbers")
    try:
        return FAMILIES[name], ModelConfig.model_validate(FAMILIES[name].read(theirs))
    except Unmapped as unmapped:
        raise CheckpointError(f"{origin} has {unmapped}, which the blocks here do not know") from None
    except KeyError as error:
        raise CheckpointError(f"{origin}/config.json does not say {error.args[0]}: restore it") from None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:  # pydantic's errors are ValueErrors
        raise CheckpointError(f"{origin}/config.json does not describe a {name} ({error}): restore it") from None


def _under_full_names(family: Family, stored: dict[str, Stored]) -> dict[str, Stored]:
    """A file of the bare model, which has no head, leaves the beginning of its names out."""
    if any(name.startswith(family.left_out) for name in stored):
        return stored
    return {name if name == "lm_head.weight" else family.left_out + name: each for name, each in stored.items()}


def _check_sizes(config: ModelConfig, stored: dict[str, Stored], *, origin: str) -> None:
    """Before a table of the parameters is made: it would be as long as a lie about them."""
    values = sum(math.prod(each.shape) for each in stored.values())
    for name in ("n_layer", "n_head", "n_embd", "vocabulary", "hidden"):
        if getattr(config, name) > values:
            raise CheckpointError(
                f"the config.json of {origin} says {getattr(config, name):,} ({name}), but its files hold {values:,} "
                "numbers in all: restore it"
            )

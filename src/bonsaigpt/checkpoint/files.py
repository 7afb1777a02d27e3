"""One checkpoint on disk: safetensors and JSON, written aside, hashed in a manifest, renamed when complete.

step-000500/
  model.safetensors       the weights, float32, under the names of spec.py; what is tied is stored once
  optimizer.safetensors   the optimizer's moments, as "exp_avg.<name>" and so on; left out by export
  state.json              step, losses, fingerprint of the data
  manifest.json           SHA-256 of each file above; written last, so a folder without it is not a checkpoint
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bonsaigpt.errors import CheckpointError
from bonsaigpt.files import folder_aside, replace_folder

__all__ = ["Arrays", "Checkpoint", "check", "read", "read_state", "write"]

Arrays = dict[str, np.ndarray]
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds, on the host."""

    model: Arrays
    optimizer: Arrays
    state: dict[str, Any]
    """``step`` (optimizer steps taken), ``tokens`` seen, ``best_loss`` and ``best_step``, ``data`` fingerprint."""


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OutputError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    with folder_aside(folder) as aside:
        _save(aside / MODEL, checkpoint.model)
        _save(aside / OPTIMIZER, checkpoint.optimizer)
        (aside / STATE).write_text(json.dumps(checkpoint.state, indent=2), encoding="utf-8")
        hashes = {name: _sha256(aside / name) for name in (MODEL, OPTIMIZER, STATE)}
        (aside / MANIFEST).write_text(json.dumps({"format": 1, "sha256": hashes}, indent=2), encoding="utf-8")
        replace_folder(aside, folder)


def read(folder: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint after its hashes were checked.

    Raises:
        CheckpointError: incomplete, damaged, or not ours; the message names the file.
    """
    check(folder)
    return Checkpoint(
        model=_load(folder / MODEL),
        optimizer=_load(folder / OPTIMIZER) if optimizer else {},
        state=read_state(folder),
    )


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` alone."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def check(folder: Path) -> None:
    """Raise ``CheckpointError`` unless every file is there and hashes to what the manifest says."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        expected = [hashes[name] for name in (MODEL, OPTIMIZER, STATE)]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder} is not a whole checkpoint (no readable manifest.json): use another one of this run"
        ) from None
    for name, sha256 in zip((MODEL, OPTIMIZER, STATE), expected, strict=True):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: use another checkpoint of this run, or restore the file")
        if _sha256(path) != sha256:
            raise CheckpointError(
                f"{path} is damaged (its SHA-256 is not the manifest's): use another checkpoint of this run, "
                "or restore the file"
            )


def _save(path: Path, arrays: Arrays) -> None:
    try:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    except SafetensorError as error:  # it wraps the operating system's error in words: "... (os error 28)"
        number = str(error).rpartition("os error ")[2].rstrip(")\"' ")
        raise OSError(int(number) if number.isdigit() else 0, str(error), str(path)) from None


def _load(path: Path) -> Arrays:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

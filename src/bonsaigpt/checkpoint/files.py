"""One checkpoint on disk: safetensors and JSON, written aside, hashed in a manifest, renamed when complete.

step-000500/
  model.safetensors       the weights, float32, under the names of spec.py; what is tied is stored once
  optimizer.safetensors   the optimizer's moments, as "exp_avg.<name>" and so on; left out by export
  state.json              step, losses, fingerprint of the data
  manifest.json           SHA-256 of each file above; written last, so a folder without it is not a checkpoint

Several processes that each hold a shard of the weights write model-1.safetensors, model-2.safetensors and so on: each
holds some rows of every tensor, and says in its header where they belong, as torch.distributed.checkpoint does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bonsaigpt.errors import CheckpointError
from bonsaigpt.files import folder_aside, replace_folder

__all__ = ["Arrays", "Checkpoint", "check", "fill", "read", "read_state", "shapes", "write", "writing_aside"]

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
    with writing_aside(folder, checkpoint.state) as aside:
        fill(aside, checkpoint)


@contextmanager
def writing_aside(folder: Path, state: dict[str, Any]) -> Iterator[Path]:
    """An empty folder to be filled with tensors; afterwards it is sealed with a manifest and put in its place."""
    with folder_aside(folder) as aside:
        yield aside
        (aside / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        hashes = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps({"format": 1, "sha256": hashes}, indent=2), encoding="utf-8")
        replace_folder(aside, folder)


def fill(aside: Path, checkpoint: Checkpoint) -> None:
    """Write the tensors of a process that has them whole."""
    _save(aside / MODEL, checkpoint.model)
    _save(aside / OPTIMIZER, checkpoint.optimizer)


def read(folder: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint after its hashes were checked.

    Raises:
        CheckpointError: incomplete, damaged, or not ours; the message names the file.
    """
    check(folder)
    return Checkpoint(
        model=_load(folder, "model"),
        optimizer=_load(folder, "optimizer") if optimizer else {},
        state=read_state(folder),
    )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, from the headers of their files alone."""
    found: dict[str, tuple[int, ...]] = {}
    for file, name, offsets in _pieces(folder, "model"):
        shape = file.get_slice(name).get_shape()
        ends = [size + offset for size, offset in zip(shape, offsets or [0] * len(shape), strict=True)]
        found[name] = tuple(map(max, ends, found.get(name, ends)))
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` alone."""
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def check(folder: Path) -> None:
    """Raise ``CheckpointError`` unless every file is there and hashes to what the manifest says."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        whole = {STATE, *(kind for kind in ("model", "optimizer") if any(_is_of(kind, name) for name in hashes))}
        if len(whole) != 3:
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{folder} is not a whole checkpoint (no readable manifest.json): use another one of this run"
        ) from None
    for name, sha256 in hashes.items():
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
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, path)
    except SafetensorError as error:  # it wraps the operating system's error in words: "... (os error 28)"
        number = str(error).rpartition("os error ")[2].rstrip(")\"' ")
        raise OSError(int(number) if number.isdigit() else 0, str(error), str(path)) from None


def _load(folder: Path, kind: str) -> Arrays:
    """All tensors of a kind; what several files hold in pieces is put together."""
    found: dict[str, list[tuple[list[int], np.ndarray]]] = {}
    for file, name, offsets in _pieces(folder, kind):
        found.setdefault(name, []).append((offsets, file.get_tensor(name)))
    return {name: _joined(pieces) for name, pieces in found.items()}


def _joined(pieces: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0][1]
    whole = np.empty(np.max([np.add(offsets, piece.shape) for offsets, piece in pieces], axis=0), pieces[0][1].dtype)
    for offsets, piece in pieces:
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))] = piece
    return whole


def _pieces(folder: Path, kind: str) -> Iterator[tuple[Any, str, list[int]]]:
    """The open file, the name and the offsets of each piece of a tensor; no offsets where it is whole."""
    for path in sorted(p for p in folder.iterdir() if _is_of(kind, p.name)):
        try:
            with safe_open(path, framework="numpy") as file:
                # The entry is torch.distributed.checkpoint's; see its hf_storage.py.
                places = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
                for name in file.keys():  # noqa: SIM118  # it is no dictionary
                    yield file, name, places[name]["saved_offsets"] if name in places else []
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a safetensors file ({error})") from None


def _is_of(kind: str, name: str) -> bool:
    """Whether a file holds the tensors of that kind, all of them or the pieces of one process."""
    return re.fullmatch(rf"{kind}(-\d+)?\.safetensors", name) is not None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

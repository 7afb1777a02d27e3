"""The tensors of a folder of safetensors files, in one or in shards, distrusted: what a file says of itself is checked
before anything of it is read, and a tensor is read only when it is asked for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from bonsaigpt.errors import CheckpointError

__all__ = ["Stored", "stored_tensors"]

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PICKLES = {b"\x80": "a pickle", b"PK\x03\x04": "a zip file, as torch.save makes them around a pickle"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor on the disk."""

    path: Path
    name: str
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    begin: int
    """Byte of the file at which its numbers begin."""

    def read(self) -> np.ndarray:
        """Its numbers as float32, in memory of their own.

        Raises:
            CheckpointError: they are no floating-point numbers.
        """
        if self.dtype not in _FLOATS:
            raise CheckpointError(
                f"{self.name} of {self.path} is of type {self.dtype}: weights are F64, F32, F16 or BF16; save the "
                "model without quantisation"
            )
        raw = np.memmap(self.path, dtype=_FLOATS[self.dtype], mode="r", offset=self.begin, shape=math.prod(self.shape))
        if self.dtype == "BF16":  # the upper half of a float32
            return (raw.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return raw.astype(np.float32).reshape(self.shape)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model's folder, by name.

    Raises:
        CheckpointError: no safetensors there, or they are damaged, in disguise, incomplete, or outside the folder.
    """
    if (folder / _WHOLE).is_file():
        return _tensors_of(folder / _WHOLE)
    if not (folder / _INDEX).is_file():
        raise CheckpointError(
            f"{folder} has no model.safetensors; pickled weights (.bin, .pt) of a folder are never loaded: convert "
            "them with save_pretrained(..., safe_serialization=True)"
        )
    try:
        places = dict(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / _INDEX} cannot be read ({error}): restore it") from None
    found: dict[str, Stored] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
            raise CheckpointError(
                f"{folder / _INDEX} points at {shard!r}, outside its own folder: it is not to be trusted"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing, and the index names it: fetch the folder again")
        for name, stored in _tensors_of(folder / shard).items():
            if places.get(name) != shard:
                raise CheckpointError(f"{folder / shard} holds {name}, which the index does not say: fetch it again")
            found[name] = stored
    if missing := sorted(places.keys() - found.keys()):
        raise CheckpointError(f"{folder} lacks {missing[0]}, which its index names: fetch the folder again")
    return found


def _tensors_of(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            start = file.read(9)
            disguise = next((words for magic, words in _PICKLES.items() if start.startswith(magic)), None)
            if disguise and start[8:] != b"{":  # behind eight bytes of length begins a header in JSON
                raise CheckpointError(f"{path} is {disguise}, not safetensors, and could run any code: never loaded")
            with safe_open(path, framework="numpy"):  # checks the header: sizes, holes, overlaps, dtypes
                size = int.from_bytes(start[:8], "little")
                header = json.loads(start[8:] + file.read(size - 1))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file ({error}): fetch it again") from None
    header.pop("__metadata__", None)
    return {
        name: Stored(
            path=path,
            name=name,
            dtype=told["dtype"],
            shape=tuple(told["shape"]),
            begin=8 + size + told["data_offsets"][0],
        )
        for name, told in header.items()
    }

"""The tensors of a folder of safetensors files, in one or in shards, distrusted: what a file says of itself is checked
before anything of it is read, and a tensor is read only when it is asked for. And one such file, written.

The safetensors library checks; reading and writing are done here because its NumPy side has no bf16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from bonsaigpt.errors import CheckpointError

__all__ = ["FloatFormat", "Stored", "narrow", "stored_tensors", "write_tensors"]

FloatFormat = Literal["fp32", "bf16", "fp16"]
"""Of the numbers in a file."""

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NAMES: dict[FloatFormat, tuple[str, int]] = {"fp32": ("F32", 4), "bf16": ("BF16", 2), "fp16": ("F16", 2)}
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


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: FloatFormat = "fp32") -> None:
    """Write one safetensors file, its numbers rounded to ``dtype``."""
    spelt, width = _NAMES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers reads no other
    end = 0
    for name, value in tensors.items():
        begin, end = end, end + value.size * width
        header[name] = {"dtype": spelt, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin where they are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            narrow(value, dtype).tofile(file)


def narrow(value: np.ndarray, dtype: FloatFormat) -> np.ndarray:
    """Rounded to the nearest number of a format, ties to even; bf16 as the upper halves of float32."""
    if dtype == "bf16":
        bits = np.ascontiguousarray(value, dtype="<f4").view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.ascontiguousarray(value, dtype="<f2" if dtype == "fp16" else "<f4")

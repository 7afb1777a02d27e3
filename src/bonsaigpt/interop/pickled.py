"""Pickles read as data: a machine of its own for the opcodes that plain values and tensors are made of.

Python's ``pickle`` calls whatever a file names, so it is never used here. This machine calls nothing: a name in the
file is a pair of words, and the few that stand for tensors and dictionaries are understood; any other is refused. Files
of ``torch.save`` (a zip of such a pickle and the raw numbers, torch 1.6 and later) and small pickles such as nanoGPT's
``meta.pkl`` can be read so.
"""

from __future__ import annotations

import math
import pickletools
import reprlib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.errors import CheckpointError

__all__ = ["Saved", "read_pickle", "read_torch"]

_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_MOST = 10_000_000
"""Opcodes of a pickle; a checkpoint of GPT-2 XL with its optimizer has a few hundred thousand."""


@dataclass(frozen=True)
class _Name:
    """``module.word``, which stays words."""

    module: str
    word: str

    def __str__(self) -> str:
        return f"{self.module}.{self.word}"


@dataclass(frozen=True, kw_only=True)
class _Storage:
    kind: str
    key: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor of a file, read when it is asked for."""

    path: Path
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its numbers, floating-point ones as float32.

        Raises:
            CheckpointError: they lie outside what the file holds, or it is damaged.
        """
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, np.float32)
        if self.offset < 0 or last >= self.storage.size:
            raise CheckpointError(f"{self.path} has a tensor that reaches outside its storage: it is not to be trusted")
        dtype = np.dtype(_TYPES[self.storage.kind])
        try:
            with zipfile.ZipFile(self.path) as file:
                [entry] = [e for e in file.infolist() if e.filename.partition("/")[2] == f"data/{self.storage.key}"]
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != self.storage.size * dtype.itemsize:
                    raise CheckpointError(f"{self.path} says that {entry.filename} has another size: it is damaged")
                raw = np.frombuffer(file.read(entry), dtype=dtype)
        except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}): copy it again") from None
        if raw.size != self.storage.size:  # a zip file states the size twice, and what is read goes by the other
            raise CheckpointError(f"{self.path} holds less of {entry.filename} than it says: copy it again")
        steps = [step * dtype.itemsize for step in self.strides]
        seen = np.lib.stride_tricks.as_strided(raw[self.offset :], self.shape, steps, writeable=False)
        if self.storage.kind == "BFloat16Storage":
            return (seen.astype(np.uint32) << 16).view(np.float32)
        return seen.astype(np.float32) if dtype.kind == "f" else seen.copy()


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote: dictionaries, lists and plain values, with ``Saved`` for tensors.

    Raises:
        CheckpointError: not such a file, damaged, or its pickle names anything that is no tensor.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = {e.filename.partition("/")[2]: e for e in file.infolist()}
            if "data.pkl" not in names:
                raise CheckpointError(f"{path} is a zip file, but none of torch.save's: it has no data.pkl")
            if "byteorder" in names and file.read(names["byteorder"]) != b"little":
                raise CheckpointError(f"{path} was written on a big-endian machine: save it again on another")
            if names["data.pkl"].compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} has a compressed data.pkl, which torch.save never writes: save it again")
            data = file.read(names["data.pkl"])
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} is no file of torch.save ({error}); those of torch before 1.6 must be saved again with a newer one"
        ) from None
    held = {name.removeprefix("data/") for name in names if name.startswith("data/")}

    def storage(given: Any) -> _Storage:
        match given:
            case ("storage", _Name(module="torch", word=kind), str(key), _, int(size)) if (
                kind in _TYPES and key in held
            ):
                return _Storage(kind=kind, key=key, size=size)
        raise CheckpointError(f"{path} refers to {_short(given)}, which is no storage of numbers")

    def tensor(*given: Any) -> Saved:
        match given:
            case (_Storage() as held_in, int(offset), tuple(shape), tuple(strides), *_) if (
                len(shape) == len(strides)
                and all(isinstance(n, int) and n >= 0 for n in (*shape, *strides))
                and math.prod(shape) <= held_in.size
            ):
                return Saved(path=path, storage=held_in, offset=offset, shape=shape, strides=strides)
        raise CheckpointError(f"{path} makes a tensor of {_short(given)}: it is damaged")

    known = {
        _Name("torch._utils", "_rebuild_tensor_v2"): tensor,
        _Name("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    }
    return _run(data, origin=str(path), known=known, storage=storage)


def read_pickle(path: Path) -> Any:
    """A pickle of plain values.

    Raises:
        CheckpointError: not such a file, damaged, or it names anything.
    """
    try:
        return _run(path.read_bytes(), origin=str(path), known={}, storage=None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _run(
    data: bytes, *, origin: str, known: dict[_Name, Callable[..., Any]], storage: Callable[[Any], _Storage] | None
) -> Any:
    """What a pickle describes. ``known``: the names that stand for values, and what makes those."""
    known = known | {_Name("collections", "OrderedDict"): _empty}
    words = {str(name) for name in known} | {f"torch.{kind}" for kind in _TYPES if storage is not None}
    machine = _Machine(origin, known, words, storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MOST:
                raise CheckpointError(f"{origin} has a pickle without an end: it is not to be trusted")
            if machine.step(opcode.name, argument):
                return machine.stack.pop()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"{origin} has a damaged pickle ({error})") from None
    raise CheckpointError(f"{origin} has a pickle without an end: it is damaged")


def _empty() -> dict[Any, Any]:
    """An ordered dictionary, whose items are set one by one after it."""
    return {}


_MARK = object()


class _Machine:
    def __init__(
        self,
        origin: str,
        known: dict[_Name, Callable[..., Any]],
        words: set[str],
        storage: Callable[[Any], _Storage] | None,
    ) -> None:
        self.origin, self.known, self.words, self.storage = origin, known, words, storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> bool:
        """One opcode; whether it was the last. Those that are not here make objects or call something."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return True
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "INT" | "LONG" | "FLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode]())
            case "TUPLE" | "LIST":
                stack.append((tuple if opcode == "TUPLE" else list)(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT" | "SETITEMS" | "SETITEM":
                self._set_items(opcode)
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode == "APPEND" else self._marked()
                _as(list, stack[-1]).extend(items)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                self._name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                word, module = stack.pop(), stack.pop()
                self._name(module, word)
            case "BINPERSID" if self.storage is not None:
                stack.append(self.storage(stack.pop()))
            case "REDUCE":
                given, name = stack.pop(), stack.pop()
                if not isinstance(name, _Name) or name not in self.known:
                    raise CheckpointError(
                        f"{self.origin} would call {_short(name)}: it is refused, nothing was executed"
                    )
                stack.append(self.known[name](*_as(tuple, given)))
            case "BUILD":  # attributes of a state_dict, which hold versions of modules
                stack.pop()
                _as(dict, stack[-1])
            case _:
                raise CheckpointError(
                    f"{self.origin} has the pickle opcode {opcode}, which no plain values need: it is refused, nothing "
                    "was executed"
                )
        return False

    def _name(self, module: str, word: str) -> None:
        name = _Name(_as(str, module), _as(str, word))
        if str(name) not in self.words:
            raise CheckpointError(
                f"{self.origin} names {name}, which is no tensor: it is refused, nothing was executed"
            )
        self.stack.append(name)

    def _marked(self) -> list[Any]:
        place = max(n for n, value in enumerate(self.stack) if value is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _set_items(self, opcode: str) -> None:
        if opcode == "SETITEM":
            items = self.stack[-2:]
            del self.stack[-2:]
        else:
            items = self._marked()
        if not all(key is None or isinstance(key, str | int | float) for key in items[::2]):  # the hash of tuples nests
            raise TypeError("a key is no plain value")
        if opcode == "DICT":
            self.stack.append({})
        _as(dict, self.stack[-1]).update(zip(items[::2], items[1::2], strict=True))


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{_short(value)} where a {kind.__name__} belongs")
    return value


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str | int | float | _Name) else reprlib.repr(value)  # bounded
    return text if len(text) <= 60 else text[:57] + "..."

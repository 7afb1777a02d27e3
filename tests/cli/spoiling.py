"""A workshop (a text, a recipe, a trained run), ways to spoil it, and what every refusal must be: one clear line, and
nothing left behind."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bonsaigpt.cli import main
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.shards import open_corpus, verify_shards

RECIPE = """
[data]
kind = "files"
path = "text.txt"

[model]
n_layer = 1
n_head = 2
n_embd = 16
block_size = 8

[optim.schedule]
kind = "constant"

[train]
steps = 4
batch_size = 4
eval_interval = 2
keep_every = 2
threads = 1
device = "cpu"
tensorboard = false
"""

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One kind of bad input."""

    name: str
    command: str
    says: tuple[str, ...]
    """What the message must contain: words of the cause, then of the remedy."""
    spoil: Spoil | None = None
    mended: str | None = None
    """A command that works in the same place."""
    prepares: bool = False
    """The refusal can come only after the text was tokenised, so a whole corpus may stay as a cache."""


# ------------------------------------------------------------------------------------ ways to spoil a workshop


def write(name: str, content: bytes | str) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


def delete(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return spoil


def flip(name: str) -> Spoil:
    """One bit of the last byte. ``*`` stands for the one corpus."""

    def spoil(root: Path) -> None:
        [path] = root.glob(name)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    return spoil


def truncate(name: str) -> Spoil:
    """The second half is gone. ``*`` stands for the one corpus."""

    def spoil(root: Path) -> None:
        [path] = root.glob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def append_text(root: Path) -> None:
    with (root / "text.txt").open("a", encoding="utf-8") as file:
        file.write("the cat sat on another mat\n" * 9)


def other_run(root: Path) -> None:
    """A second run, on a text of other characters."""
    write("digits.txt", "31415926535 8979323846 2643383279 5028841971\n" * 9)(root)
    assert main(shlex.split("train tiny.toml --name digits --data.path digits.txt")) == 0


def no_bf16(flag: bool) -> Spoil:
    def spoil(root: Path) -> None:
        import torch

        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            patch = pytest.MonkeyPatch()
            patch.setattr(torch.cpu, name, lambda: flag)
            PATCHES.append(patch)

    return spoil


def standard_input(raw: bytes) -> Spoil:
    def spoil(root: Path) -> None:
        patch = pytest.MonkeyPatch()
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        PATCHES.append(patch)

    return spoil


PATCHES: list[pytest.MonkeyPatch] = []
"""Undone after each case."""

HF_CONFIG = json.dumps(
    {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 65}
)
STEP = "runs/tiny/checkpoints/step-000004"
NEW = "train tiny.toml --name new"

# ------------------------------------------------------------------------------------ what a refusal must be


def tree(root: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the contents of the files; not the memory of what was hashed when."""
    paths = [p for p in root.rglob("*") if p.name != ".hashes.json"]
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in paths}


def assert_one_line(error: str, says: tuple[str, ...]) -> None:
    """The contract of every message."""
    assert error.endswith("\n")
    lines = error.splitlines()
    assert len(lines) == 1, error
    assert lines[0].startswith("bonsai: ")
    assert "Traceback" not in error
    for words in says:
        assert words in lines[0]


def assert_unchanged(before: dict[str, bytes | None], root: Path, *, prepares: bool = False) -> None:
    """Nothing was written, changed or deleted, but perhaps a whole corpus was added."""
    after = tree(root)
    if prepares:
        corpora = {name.split("/")[1] for name in after.keys() - before.keys() if name.startswith("corpora/")}
        for name in corpora:
            verify_shards(open_corpus(root / "corpora" / name), FileHashes())
        after = {
            n: c for n, c in after.items() if n in before or n.split("/")[:2] not in [["corpora", c] for c in corpora]
        }
    assert sorted(after) == sorted(before)
    assert [name for name in before if after[name] != before[name]] == []

"""The workshop that bad input is tried in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bonsaigpt.cli import main

pytest.register_assert_rewrite("tests.cli.spoiling")  # its checks explain themselves, as those of a test file do

from tests.cli.spoiling import PATCHES, RECIPE  # noqa: E402


@pytest.fixture(scope="module")
def without_reports() -> Iterator[None]:
    """The report comes after everything that is tested here, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bonsaigpt.cli.train._write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, without_reports: None) -> Path:
    """A workshop: a text, a recipe, and a run with checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("workshop")
    shutil.copy(tiny_text, root / "text.txt")
    (root / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    with contextlib.chdir(root):
        assert main(["train", "tiny.toml"]) == 0
    return root


@pytest.fixture
def workshop(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to spoil, as the working folder."""
    root = tmp_path / "workshop"
    shutil.copytree(original, root)
    monkeypatch.chdir(root)
    for name in ("BONSAI_RUNS", "BONSAI_CORPORA"):
        monkeypatch.delenv(name, raising=False)
    yield root
    while PATCHES:
        PATCHES.pop().undo()

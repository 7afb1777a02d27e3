"""The handbook's drawings are what their script makes of the code and the tables of today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"


def load() -> ModuleType:
    """docs/drawings.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("handbook_drawings", ROOT / "docs" / "drawings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawings = load()


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_is_small_and_stands_on_its_page(name: str) -> None:
    assert (IMAGES / f"{name}.svg").stat().st_size < 60_000
    assert f"](images/{name}.svg)" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [n for n in drawings.DRAWINGS if n != "kv"])  # whose nearly even choices may round
def test_a_drawing_is_what_its_script_makes(name: str) -> None:
    there = (IMAGES / f"{name}.svg").read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}," not in there:
        pytest.skip("drawn by another version of matplotlib")
    assert drawings.drawn(name) == there, f"python docs/drawings.py {name}"


def test_a_figure_that_changes_changes_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawings.table_of("tokenizers.md", "tokenizer")
    assert rows[0] == ["bytes", "1.00", "1.00", "1.00", "1.00"]
    monkeypatch.setattr(drawings, "table_of", lambda *_: [["bytes", "2.00", *rows[0][2:]], *rows[1:]])
    assert drawings.drawn("tokenizers") != (IMAGES / "tokenizers.svg").read_text(encoding="utf-8")


def test_a_table_that_is_gone_is_told() -> None:
    with pytest.raises(ValueError, match="no table that begins with 'tokenisers'"):
        drawings.table_of("tokenizers.md", "tokenisers")

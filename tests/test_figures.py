"""Figures and outputs on a page of the handbook that has a recording are what was recorded, of the page's commands."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDED = sorted(file.stem for file in (DOCS / "recorded").glob("*.json"))


sys.path.insert(0, str(DOCS))
figures: ModuleType = importlib.import_module("figures")


@pytest.mark.parametrize("name", RECORDED)
def test_a_page_says_what_was_recorded(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    recorded = figures.read_record(DOCS / f"{name}.md")
    assert figures.fill(page, recorded) == page, f"python docs/figures.py fill {name}.md"
    assert not re.search(r"^<!--(\d+:|commands)", page, flags=re.MULTILINE), "Markdown takes such a line for HTML"
    assert re.search(r"<!--\d+[ :]", page), "nothing on the page comes from the recording"


@pytest.mark.parametrize("name", RECORDED)
def test_the_check_sees_another_figure_and_another_command(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    recorded = figures.read_record(DOCS / f"{name}.md")
    number = re.search(r"<!--(\d+): .+?-->([^<]*\d)<!--/-->", page)
    assert number is not None
    stale = page.replace(number[2] + "<!--/-->", "9" + number[2] + "<!--/-->", 1)
    assert figures.fill(stale, recorded) == page != stale
    with pytest.raises(ValueError, match="record it again"):
        figures.fill(page, [replace(recorded[0], command="bonsai recipes"), *recorded[1:]])
    with pytest.raises(ValueError, match="finds nothing"):
        figures.fill(page, [replace(entry, output="") for entry in recorded])


def test_marks_are_filled() -> None:
    one = figures.Recorded("bonsai eval runs/a", "loss 1.25\nb\nc\n", 3.0, "a machine", "2026-01-01")
    page = "```sh\nbonsai eval runs/a  # so\n```\n<!--1: loss ([0-9.]+)-->?<!--/--> <!--commands--><!--/-->\n"
    page += "<!--1 lines 1:-->\n\n<!--/-->\n"
    filled = figures.fill(page, [one])
    assert "<!--1: loss ([0-9.]+)-->1.25<!--/-->" in filled
    assert "```text\nb\nc\n```" in filled
    assert "recorded on 2026-01-01 by the page's commands; a machine" in filled
    assert figures.fill(filled, [one]) == filled


def test_recording_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RECORDS", tmp_path / "recorded")
    page = tmp_path / "page.md"
    page.write_text("```sh\nbonsai --version\nbonsai recipes\n```\n", encoding="utf-8")
    figures.record(page, tmp_path / "work")
    first = figures.read_record(page)
    assert [entry.command for entry in first] == ["bonsai --version", "bonsai recipes"]
    assert "shakespeare-char" in first[1].output
    page.write_text("```sh\nbonsai --version\nbonsai --help\n```\n", encoding="utf-8")
    figures.record(page, tmp_path / "work")
    again = figures.read_record(page)
    assert again[0] == first[0]
    assert again[1].command == "bonsai --help"

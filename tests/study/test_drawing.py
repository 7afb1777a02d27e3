"""The drawing of a study: the same characters each time, whatever a user's matplotlib is set to."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure

from bonsaigpt.errors import OutputError
from bonsaigpt.study.drawing import save_drawing


def draw(figure: Figure) -> None:
    figure.subplots().plot([1, 2], [3, 4], label="a line")


def test_the_same_drawing_is_the_same_characters(tmp_path: Path) -> None:
    """By default the ids inside an SVG are drawn by chance, at the moment when it is written."""
    image = tmp_path / "a.png"
    first, png = save_drawing(draw, image, size=(4, 3)), image.read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert save_drawing(draw, image, size=(4, 3)) == first
    assert image.read_bytes() == png
    assert first.startswith('<svg style="')
    assert save_drawing(lambda figure: None, image, size=(4, 3)) != first


def test_a_drawing_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.png"):
        save_drawing(draw, tmp_path / "missing" / "a.png", size=(4, 3))

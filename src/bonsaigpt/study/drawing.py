"""The one drawing of a study: as PNG beside its page, and inside the page."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bonsaigpt.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["save_drawing"]


def save_drawing(draw: Callable[[Figure], None], image: Path, *, size: tuple[float, float]) -> str:
    """Draw on a sheet of ``size`` (inches), write it as PNG, and return it as an ``<svg>`` element on white.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "bonsai"})
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        with writing(image):
            figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    made = svg.getvalue()
    style = '<svg style="max-width: 100%; height: auto; background: #fff"'
    return made[made.index("<svg") :].replace("<svg", style, 1)

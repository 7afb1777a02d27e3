"""Heat maps over two counts, as inline SVG for a page and as PNG for elsewhere: one drawing, two sets of colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bonsaigpt.files import writing
from bonsaigpt.report.curves import INK, inline, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HeatMap", "heat_png", "heat_svg"]

_PAPER_INK, _PAPER_COLOUR = "#23261f", "#2c6e4d"
_FAINTEST, _FULLEST = 0.07, 0.55
"""Of the colour; the figures must stay legible in light and in dark."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A figure for some of the pairs of two lengths; the fuller the colour, the lower (the better) the value."""

    title: str
    values: Mapping[tuple[int, int], float | None]
    """By column and row; None where the pair was tried and has no such figure."""
    labels: Mapping[tuple[int, int], str]
    x_label: str
    y_label: str
    least_range: float = 0.0
    """Share of the lowest value that takes the whole range of colours at least: smaller differences look small."""


def heat_svg(map_: HeatMap, *, name: str, size: tuple[int, int]) -> str:
    """An ``<svg>`` element in the page's own colours; ``name`` is unique on the page, ``size`` in CSS pixels."""
    import matplotlib
    from matplotlib.figure import Figure

    width, height = size
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11})
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((46 / width, 40 / height, 1 - 48 / width, 1 - 42 / height))
        _draw(axes, map_, ink=INK, colour=mark(0))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), map_.title).replace('class="chart"', 'class="chart heat"', 1)


def heat_png(maps: Sequence[HeatMap], path: Path, *, title: str, note: str) -> Path:
    """All maps on one sheet, two in a row.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9})
        rows = -(-len(maps) // 2)
        figure = Figure(figsize=(11, 0.9 + 3.6 * rows), layout="constrained")
        figure.suptitle(title, color=_PAPER_INK, fontsize=13)
        figure.supxlabel(note, color=_PAPER_INK, fontsize=8, wrap=True)
        for axes, map_ in zip(figure.subplots(rows, 2, squeeze=False).flat, maps, strict=False):
            _draw(axes, map_, ink=_PAPER_INK, colour=_PAPER_COLOUR)
            axes.set_title(map_.title, color=_PAPER_INK, fontsize=10, loc="left")
        with writing(path):
            figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path


def _draw(axes: Axes, map_: HeatMap, *, ink: str, colour: str) -> None:
    from matplotlib.patches import Rectangle

    columns = sorted({x for x, _ in map_.values})
    rows = sorted({y for _, y in map_.values}, reverse=True)
    known = [v for v in map_.values.values() if v is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = max(high - low, map_.least_range * low)
    for (x, y), value in map_.values.items():
        at = columns.index(x), rows.index(y)
        fullness = _FAINTEST if value is None else _FULLEST
        if value is not None and span > 0:
            fullness -= (_FULLEST - _FAINTEST) * (value - low) / span
        axes.add_patch(
            Rectangle((at[0] - 0.48, at[1] - 0.46), 0.96, 0.92, facecolor=colour, alpha=fullness, linewidth=0)
        )
        axes.text(*at, map_.labels[x, y], ha="center", va="center", color=ink)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [f"{x:,}" for x in columns])
    axes.set_yticks(range(len(rows)), [f"{y:,}" for y in rows])
    axes.tick_params(axis="both", length=0, colors=ink, pad=5)
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(map_.x_label, loc="right", color=ink)
    axes.set_ylabel(map_.y_label, loc="top", color=ink)

"""Curves as inline SVG, drawn by matplotlib, coloured by the page.

matplotlib knows nothing of light and dark, so it draws with marked colours, which become ``currentColor`` and the
page's CSS variables afterwards. Text stays text (no font is embedded), and names of runs are never drawn: the page
says them in HTML, where nothing in them can be taken for TeX or markup.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bonsaigpt.report.history import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "INK",
    "SERIES_COLOURS",
    "SMALL",
    "WIDE",
    "Curve",
    "chart",
    "frame",
    "inline",
    "mark",
    "seconds_axis",
    "smooth",
    "smoothed",
]

SERIES_COLOURS = 8
"""Colours the page knows: its CSS variables --c0 to --c7."""

WIDE, SMALL = (900, 330), (440, 230)
"""Sizes in CSS pixels at which the text is as large as the page's own small print."""

INK = "#010203"
"""Stands for the page's ink until ``inline`` puts that in."""
_MOST_POINTS = 1200


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    series: Series
    colour: int
    """Number of a CSS variable."""
    faint: bool = False
    """Behind the others: what a smoothed line was made from."""
    best: bool = False
    """Mark the lowest point."""
    band: Series | None = None
    """Lower and upper edge of an area around the line, at the line's own x."""


def chart(
    curves: Sequence[Curve],
    *,
    name: str,
    label: str,
    x_label: str,
    size: tuple[int, int] = SMALL,
    from_zero: bool = False,
    limit: float | None = None,
) -> str:
    """An ``<svg>`` element; the same curves give the same characters.

    Args:
        name: unique on the page, for the ids inside.
        label: what it shows, for screen readers.
        from_zero: the y axis begins at 0 and is linear; otherwise it is logarithmic where the values span
            more than a factor of 8.
        limit: a dashed horizontal line, if it is within the range of the curves.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn = [c for c in curves if c.series[0].size]
    width, height = size
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11})
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((46 / width, 40 / height, 1 - 56 / width, 1 - 50 / height))
        _lay_out(axes, drawn, x_label=x_label, from_zero=from_zero, ticks=(width // 80, height // 50))
        for z, curve in enumerate(drawn):
            _draw(axes, curve, z=z + 3)
        low, high = axes.get_ylim()
        if limit is not None and low < limit < high:
            axes.axhline(limit, color=INK, alpha=0.5, linewidth=0.8, dashes=(4, 4), zorder=2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), label)


def smooth(series: Series, *, share: float = 0.05) -> Series:
    """A centred moving average over ``share`` of the points.

    It does not lag as an exponential average does, which would blame the training loss for what it was. At the start,
    where the loss is steep, the window shrinks evenly to the first value; at the end, where it is flat, its left half
    stays.
    """
    x, y = series
    at = np.arange(y.size)
    left = np.minimum(round(y.size * share / 2), at)
    right = np.minimum(left, y.size - 1 - at)
    total = np.concatenate([[0.0], np.cumsum(y)])
    return x, (total[at + right + 1] - total[at - left]) / (left + right + 1)


def smoothed(series: Series, colour: int) -> list[Curve]:
    """A noisy curve, smoothed, with what it was made from faint behind; a short one alone, as it is."""
    calm = Curve(series=smooth(series), colour=colour)
    if np.array_equal(calm.series[1], series[1]):
        return [calm]
    return [Curve(series=series, colour=colour, faint=True), calm]


def seconds_axis(longest: float) -> tuple[float, str]:
    """The divisor and the name of the unit in which training time reads best."""
    if longest < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def frame(axes: Axes, *, ink: str) -> None:
    """One rule below, hairlines across, no box."""
    axes.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=ink, alpha=0.45, linewidth=0.8)
    axes.grid(axis="y", color=ink, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, colors=ink, pad=7)


def _lay_out(axes: Axes, curves: Sequence[Curve], *, x_label: str, from_zero: bool, ticks: tuple[int, int]) -> None:
    """Scales, ticks and grid: one rule below, hairlines across, no box."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    frame(axes, ink=INK)
    axes.margins(x=0.015, y=0.08)
    y = np.concatenate([c.series[1] for c in curves]) if curves else np.ones(1)
    if not from_zero and y.min() > 0 and y.max() > 8 * y.min():
        axes.set_yscale("log")
        fine = y.max() < 200 * y.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks[1], steps=[1, 2, 2.5, 5, 10]))
        if from_zero:
            axes.set_ylim(0, float(y.max()) * 1.08 or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks[0], steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.set_xlabel(x_label, loc="right", color=INK, labelpad=7)


def _draw(axes: Axes, curve: Curve, *, z: int) -> None:
    x, y = curve.series if curve.band is not None else _thin(curve.series)
    colour = mark(curve.colour)
    if curve.band is not None:
        axes.fill_between(x, *curve.band, color=colour, alpha=0.16, linewidth=0, zorder=z - 0.5)
    if curve.faint:
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.4, zorder=z)
        return
    # Past the eighth run the colours come again, in dashes.
    dashes = "-" if curve.colour < SERIES_COLOURS else (0, (4, 2))
    axes.plot(x, y, color=colour, linewidth=1.8, linestyle=dashes, zorder=z, marker="o" if x.size == 1 else "")
    if curve.best:
        at = int(np.argmin(y))
        axes.plot(x[at], y[at], "o", color=colour, markersize=7, markeredgewidth=0, zorder=z + 50, clip_on=False)


def _thin(series: Series) -> Series:
    """At most ``_MOST_POINTS`` points: the lowest and the highest of each stretch, so that no spike is lost."""
    x, y = series
    if x.size <= _MOST_POINTS:
        return series
    kept = [np.array([0, x.size - 1])]
    for stretch in np.array_split(np.arange(x.size), _MOST_POINTS // 2):
        kept.append(stretch[[np.argmin(y[stretch]), np.argmax(y[stretch])]])
    chosen = np.unique(np.concatenate(kept))
    return x[chosen], y[chosen]


def _tick(value: float, _position: int | None = None) -> str:
    """``1500`` is 1,500; ``2e6`` is 2M; small numbers as they are."""
    for least, size, letter in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("e-0", "e-")


def mark(colour: int) -> str:
    """A colour that stands for a CSS variable."""
    return f"#0102f{colour % SERIES_COLOURS}"


def inline(svg: str, label: str) -> str:
    """From a file to an element: nothing that points outside, no fixed size, no font, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box is not None
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {box[0]}>'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r' transform="rotate\(-0 [^"]*"| font-family: [^;]*;', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"#0102f(\d)", r"var(--c\1)", svg).replace(INK, "currentColor")
    return re.sub(r">\s+<", "><", svg).strip()

"""Loss against learning rate, as inline SVG for a page and as PNG for elsewhere: one drawing, two sets of colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bonsaigpt.files import writing
from bonsaigpt.report.curves import INK, frame, inline, mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RatePlot", "Tried", "rate_png", "rate_svg"]

_PAPER_INK, _PAPER_COLOUR, _PAPER_MARK = "#23261f", "#2c6e4d", "#c0703a"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One learning rate."""

    rate: float
    name: str
    """As a multiple: ``x2``."""
    losses: Sequence[float]
    """Of the seeds that finished, nats."""
    mean: float | None
    """None where none finished."""
    margin: float | None
    """Half of the interval; None draws no whisker."""
    failed: bool
    """Whether a seed failed, as a rule because it diverged."""


@dataclass(frozen=True, kw_only=True)
class RatePlot:
    """All rates, and the one to use."""

    tried: Sequence[Tried]
    """The lowest rate first; at least two."""
    suggested: float | None
    through: Sequence[float]
    """The three rates of the parabola; fewer draw none."""
    x_label: str
    label: str
    """What it shows, for screen readers."""


def rate_svg(plot: RatePlot, *, size: tuple[int, int]) -> str:
    """An ``<svg>`` element in the page's own colours, ``size`` in CSS pixels."""
    import matplotlib
    from matplotlib.figure import Figure

    width, height = size
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "rates", "svg.fonttype": "none", "font.size": 11})
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((46 / width, 40 / height, 1 - 62 / width, 1 - 66 / height))
        _draw(axes, plot, ink=INK, colour=mark(0), accent=mark(1), room=width // 56)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), plot.label)


def rate_png(plot: RatePlot, path: Path, *, title: str, note: str) -> Path:
    """The same with a title and a note below.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 10})
        figure = Figure(figsize=(9, 4.8))
        axes = figure.add_axes((0.075, 0.27, 0.9, 0.56))
        _draw(axes, plot, ink=_PAPER_INK, colour=_PAPER_COLOUR, accent=_PAPER_MARK, room=12)
        figure.text(0.075, 0.94, title, color=_PAPER_INK, fontsize=13)
        figure.text(0.075, 0.14, note, color=_PAPER_INK, fontsize=8.5, va="top", linespacing=1.5)
        with writing(path):
            figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path


def _draw(axes: Axes, plot: RatePlot, *, ink: str, colour: str, accent: str, room: int) -> None:
    """``room``: names that fit beside each other."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    named = _named(plot.tried, room)
    frame(axes, ink=ink)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([t.rate for t in named]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{t.rate:.3g}".replace("e-0", "e-") for t in named]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(plot.x_label, loc="right", color=ink, labelpad=7)
    axes.set_ylim(*_limits(plot))
    top = axes.get_xaxis_transform()  # rates below, places between 0 (floor) and 1 (ceiling) of the picture
    known = [t for t in plot.tried if t.mean is not None and not t.failed]
    axes.plot([t.rate for t in known], [t.mean for t in known if t.mean is not None], color=colour, alpha=0.35, lw=1.2)
    for t in named:
        axes.text(t.rate, 1.03, t.name, transform=top, ha="center", va="bottom", color=ink, alpha=0.75)
    for t in plot.tried:
        if t.failed:
            axes.text(t.rate, 0.97, "failed", transform=top, ha="center", va="top", color=ink, alpha=0.75)
        if t.mean is None or t.failed:
            continue
        if len(t.losses) > 1:
            axes.plot([t.rate] * len(t.losses), t.losses, "_", color=colour, alpha=0.7, markersize=9)
        if t.margin is not None:
            axes.vlines(t.rate, t.mean - t.margin, t.mean + t.margin, color=colour, linewidth=1.8)
        axes.plot(t.rate, t.mean, "o", color=colour, markersize=7, markeredgewidth=0, zorder=5)
    if len(plot.through) == 3:
        axes.plot(*_parabola(plot), color=accent, linewidth=1.5, zorder=4)
    if plot.suggested is not None:
        axes.axvline(plot.suggested, ymax=0.86, color=accent, linewidth=1.2, dashes=(4, 3), zorder=2)
        axes.text(
            plot.suggested, 0.88, f"{plot.suggested:.2g}", transform=top, ha="center", color=accent, fontweight="bold"
        )
    lowest, highest = min(t.rate for t in plot.tried), max(t.rate for t in plot.tried)
    axes.set_xlim(lowest / (highest / lowest) ** 0.06, highest * (highest / lowest) ** 0.06)


def _named(tried: Sequence[Tried], room: int) -> list[Tried]:
    """Those whose names do not touch that of another, from the left."""
    width = np.log(tried[-1].rate / tried[0].rate) * 1.12
    kept = [tried[0]]
    for t in tried[1:]:
        if np.log(t.rate / kept[-1].rate) * room >= width:
            kept.append(t)
    return kept


def _limits(plot: RatePlot) -> tuple[float, float]:
    """From the losses alone: of two seeds an interval may be longer than the picture. A rate that is far worse than all
    others would flatten them, so the picture ends where the loss has risen ten times as far as around the best."""
    losses = [loss for t in plot.tried if not t.failed for loss in t.losses]
    if not losses:
        return 0.0, 1.0
    low, high = min(losses), max(losses)
    near = [loss for t in plot.tried if t.rate in plot.through for loss in t.losses]
    if len(plot.through) == 3:
        high = min(high, low + 10 * (max(near) - low))
    pad = 0.1 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + 2 * pad  # above there is the suggested rate


def _parabola(plot: RatePlot) -> tuple[np.ndarray, np.ndarray]:
    """Through the three means, in the logarithm of the rate."""
    means = {t.rate: t.mean for t in plot.tried if t.mean is not None}
    logs = np.log(np.array(plot.through))
    line = np.linspace(logs[0], logs[2], 60)
    fit = np.polyfit(logs - logs[1], np.array([means[rate] for rate in plot.through]), 2)
    return np.exp(line), np.polyval(fit, line - logs[1])

"""Means with their intervals, one under the other on one scale: a dot, a whisker, and a small tick for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bonsaigpt.report.curves import SERIES_COLOURS
from bonsaigpt.report.markup import swatch, text

__all__ = ["Interval", "interval_chart"]

_WIDTH, _HEIGHT = 600, 30


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row."""

    name: str
    values: Sequence[float]
    """Of the repetitions."""
    mean: float
    margin: float | None
    """Half the width of the interval; None draws no whisker."""
    words: str
    """The same in figures."""


def interval_chart(rows: Sequence[Interval]) -> str:
    """Rows in the colours of the curves. The scale is that of the values: a whisker may be longer than the picture."""
    values = [value for row in rows for value in row.values]
    low, high = min(values), max(values)
    pad = 0.35 * (high - low) or 0.01 * abs(high) or 1.0
    start, scale = low - pad, _WIDTH / (high - low + 2 * pad)
    body = "".join(
        f'<tr><th scope="row">{swatch(i)}{text(row.name)}</th><td>{_drawing(row, i, start, scale)}</td>'
        f"<td>{text(row.words)}</td></tr>\n"
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll intervals"><table><tbody>{body}</tbody></table></div>'


def _drawing(row: Interval, colour: int, start: float, scale: float) -> str:
    def x(value: float) -> str:
        return f"{(value - start) * scale:.1f}"

    middle = _HEIGHT / 2
    parts = [
        f'<line x1="{x(value)}" x2="{x(value)}" y1="{middle - 6}" y2="{middle + 6}" opacity=".55"/>'
        for value in row.values
    ]
    if row.margin is not None:
        ends = f'x1="{x(row.mean - row.margin)}" x2="{x(row.mean + row.margin)}"'
        parts.append(f'<line {ends} y1="{middle}" y2="{middle}" stroke-width="2"/>')
    parts.append(f'<circle cx="{x(row.mean)}" cy="{middle}" r="5" stroke="none" fill="currentColor"/>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(row.words)}" stroke="currentColor" '
        f'style="color: var(--c{colour % SERIES_COLOURS})">{"".join(parts)}</svg>'
    )

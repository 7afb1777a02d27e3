"""The health of a run over its training: what went wrong, in words, and a heat map for each quantity.

Layers go down, steps go across, and the fuller the colour, the higher the value. Maps are drawn here and not by
matplotlib: some thousand cells become one path for each shade, in the page's own colours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bonsaigpt.measure.health import Finding, Health, effective_terms
from bonsaigpt.report.markup import panel, text

__all__ = ["health_section"]

_COLUMNS = 72
"""Looks that a map shows at most; of more, evenly many are left out."""
_SHADES = 16
_WIDTH, _GUTTER = 440, 84
_NAMED_ROWS = 28
"""Rows up to which each carries its name; of more, every block does."""
_GOOD, _BAD = "var(--c0)", "var(--c1)"

Column = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class _Map:
    title: str
    note: str
    columns: Sequence[Column]
    """For each look, a value for each row."""
    range: tuple[float, float] = (0.0, 1.0)
    """Of the colours, in decades if ``log``; beyond it they change no more."""
    show: Callable[[float], str] = lambda value: f"{100 * value:.0f} %"
    log: bool = False
    colour: str = _GOOD


def health_section(looks: Sequence[Health], findings: Sequence[Finding]) -> str:
    """The section of the page; empty where nobody looked."""
    if not looks:
        return ""
    last = looks[-1].step
    every = -(-len(looks) // _COLUMNS)
    shown = [*reversed(looks[::-1][::every])]  # the last one is always among them
    steps = [look.step for look in shown]
    maps = [m for m in _maps(shown, looks[0]) if any(m.columns)]
    drawings = [panel(m.title, text(m.note), _svg(m, steps)) for m in maps]
    return (
        f'<section><h2>Health</h2>{_words(findings, len(looks), last)}<div class="pair">{"".join(drawings)}</div>'
        "</section>"
    )


def _words(findings: Sequence[Finding], looks: int, last: int) -> str:
    if not findings:
        count = "the one look" if looks == 1 else f"{looks} looks"
        return f'<p class="note">Nothing out of the ordinary in {count}. Fuller colours are higher values.</p>'
    items = "".join(
        f"<li><b>{_when(finding, last)}</b>{text(finding.sentence)}</li>"
        for finding in sorted(findings, key=lambda f: (f.first, f.part))
    )
    return f'<ul class="findings">{items}</ul>'


def _when(finding: Finding, last: int) -> str:
    if finding.last == last:
        return f"From step {finding.first:,} on"
    return f"Steps {finding.first:,} to {finding.last:,}"


def _maps(looks: Sequence[Health], first: Health) -> list[_Map]:
    def named(values: Sequence[float | None]) -> Column:
        return {f"block {i}": value for i, value in enumerate(values)}

    def drift(look: Health) -> Column:
        pairs = ((name, value, first.balance.get(name)) for name, value in look.balance.items())
        return {name: abs(v - was) if v is not None and was is not None else None for name, v, was in pairs}

    gradients = [_weights(look.grad_rms) for look in looks]
    updates = [_weights(look.update_ratio) for look in looks]
    heads = [
        {f"h.{i}.head {j}": value for i, layer in enumerate(look.entropy) for j, value in enumerate(layer)}
        for look in looks
    ]
    terms = [{name: effective_terms(shares) for name, shares in look.energy.items()} for look in looks]
    return [
        _Map(
            title="Gradient, RMS",
            note="Root mean square of each weight's gradient, before clipping; on a logarithmic scale.",
            columns=gradients,
            range=_decades(gradients),
            log=True,
            show=lambda value: f"{value:.2g}",
        ),
        _Map(
            title="Update over weight",
            note="How much of its size a weight changes in one step; on a logarithmic scale.",
            columns=updates,
            range=_decades(updates),
            log=True,
            show=lambda value: f"{value:.2g}",
        ),
        _Map(
            title="Dead units",
            note="Share of the hidden units that are active at no token of the look.",
            columns=[named(look.dead) for look in looks],
            colour=_BAD,
        ),
        _Map(
            title="Saturated units",
            note="Share of the hidden units that bend nothing any more.",
            columns=[named(look.saturated) for look in looks],
            colour=_BAD,
        ),
        _Map(
            title="Attention entropy",
            note="Of each head: full looks at all tokens alike, empty at one alone.",
            columns=heads,
        ),
        _Map(
            title="Effective rank",
            note="Directions that a weight uses, as a share of those that it has.",
            columns=[look.effective_rank for look in looks],
        ),
        _Map(
            title="Drift of the factors",
            note="Decades by which one factor has outgrown the other since the first look.",
            columns=[drift(look) for look in looks],
            range=(0.0, 2.0),
            show=lambda value: f"{value:.1f}",
            colour=_BAD,
        ),
        _Map(
            title="Terms in use",
            note="Effective number of terms of a sum, as a share of those that are stored.",
            columns=terms,
        ),
    ]


def _weights(values: Column) -> Column:
    """Without the scales and biases, which are small and many."""
    return {name: value for name, value in values.items() if not (".ln_" in name or "ln_f" in name or "bias" in name)}


def _decades(columns: Sequence[Column]) -> tuple[float, float]:
    """Logarithms that hold all but the most extreme values, to half a decade, four decades at most."""
    known = [math.log10(value) for column in columns for value in column.values() if value]
    low, high = np.percentile(known, [2, 98]) if known else (0.0, 0.0)
    high = math.ceil(2 * high) / 2
    return max(math.floor(2 * low) / 2, high - 4.0) if high > low else high - 1.0, high


# ------------------------------------------------------------------ drawing


def _svg(map_: _Map, steps: Sequence[int]) -> str:
    rows = list(dict.fromkeys(name for column in map_.columns for name in column))
    height = max(3.0, min(16.0, 300 / len(rows)))
    width = (_WIDTH - _GUTTER) / len(steps)
    bottom = len(rows) * height
    cells: dict[int, list[str]] = defaultdict(list)
    labels: list[str] = []
    for number, name in enumerate(rows):
        y = number * height
        shades = [_shade(map_, column.get(name)) for column in map_.columns]
        for first, last, shade in _runs(shades):
            if shade is not None:
                x0, x1 = _GUTTER + first * width, _GUTTER + last * width
                cells[shade].append(f"M{x0:.1f} {y:.1f}H{x1:.1f}V{y + height:.1f}H{x0:.1f}z")
        if label := _label(name, rows[number - 1] if number else "", len(rows)):
            labels.append(f'<text x="{_GUTTER - 8}" y="{y + min(height, 12) / 2 + 3.5:.1f}">{text(label)}</text>')
    paths = "".join(
        f'<path fill="{map_.colour}" fill-opacity="{0.05 + 0.9 * shade / (_SHADES - 1):.3f}" d="{"".join(parts)}"/>'
        for shade, parts in sorted(cells.items())
    )
    hints = "".join(_hint(map_, name, i, height) for i, name in enumerate(rows))
    return (
        f'<svg class="chart map" viewBox="0 0 {_WIDTH} {bottom + 46:.0f}" role="img" aria-label="{text(map_.title)}">'
        f'<g shape-rendering="crispEdges">{paths}</g><g font-size="10" fill="currentColor" text-anchor="end">'
        f"{''.join(labels)}</g>{_steps(steps, width, bottom + 14)}{_key(map_, bottom + 30)}{hints}</svg>"
    )


def _shade(map_: _Map, value: float | None) -> int | None:
    if value is None:
        return None
    low, high = map_.range
    if map_.log:
        value = math.log10(value) if value > 0 else low
    share = (value - low) / (high - low)
    return round(min(1.0, max(0.0, share)) * (_SHADES - 1))


def _runs(shades: Sequence[int | None]) -> list[tuple[int, int, int | None]]:
    """(first, behind the last, shade) of neighbours that are alike."""
    edges = [i for i in range(len(shades)) if i == 0 or shades[i] != shades[i - 1]]
    return [(a, b, shades[a]) for a, b in zip(edges, [*edges[1:], len(shades)], strict=True)]


def _label(name: str, before: str, rows: int) -> str:
    if rows <= _NAMED_ROWS:
        return name.removeprefix("h.").replace(".", " ", 1)
    block = _block(name)
    return block if block != _block(before) else ""


def _block(name: str) -> str:
    return f"block {name.split('.')[1]}" if name.startswith("h.") else name


def _hint(map_: _Map, name: str, row: int, height: float) -> str:
    values = [column.get(name) for column in map_.columns]
    words = " to ".join("none" if v is None else map_.show(v) for v in (values[0], values[-1]))
    return (
        f'<rect x="0" y="{row * height:.1f}" width="{_WIDTH}" height="{height:.1f}" fill="transparent">'
        f"<title>{text(name)}: first to last look, {text(words)}</title></rect>"
    )


def _steps(steps: Sequence[int], width: float, y: float) -> str:
    """The first, the last and one between, where there is room."""
    at = sorted({0, len(steps) // 2, len(steps) - 1} if len(steps) > 4 else {0, len(steps) - 1})
    words = ""
    for i in at:
        anchor = "start" if i == 0 and len(steps) > 1 else "end" if i == len(steps) - 1 > 0 else "middle"
        x = _GUTTER + (i + {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]) * width
        unit = "step " if i == 0 else ""
        words += f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{unit}{steps[i]:,}</text>'
    return f'<g font-size="10" fill="currentColor">{words}</g>'


def _key(map_: _Map, y: float) -> str:
    """What the colours mean: the lowest, the shades, the highest."""
    low, high = (map_.show(10.0**v if map_.log else v) for v in map_.range)
    box = 5
    x = _WIDTH - 44 - _SHADES * box
    shades = "".join(
        f'<rect x="{x + i * box}" y="{y:.1f}" width="{box}" height="8" fill="{map_.colour}" '
        f'fill-opacity="{0.05 + 0.9 * i / (_SHADES - 1):.3f}"/>'
        for i in range(_SHADES)
    )
    return (
        f'<g font-size="10" fill="currentColor"><text x="{x - 6}" y="{y + 8:.1f}" text-anchor="end">{text(low)}</text>'
        f'<g shape-rendering="crispEdges">{shades}</g>'
        f'<text x="{x + _SHADES * box + 6}" y="{y + 8:.1f}">{text(high)}</text></g>'
    )

"""Two sections of ``kv.html``: maps of what policies keep, and texts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bonsaigpt.report.markup import panel, text
from bonsaigpt.study.drawing import save_drawing
from bonsaigpt.study.kv_seen import Kept, Written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["kept_section", "written_section"]

_TILE = 1.15
"""Inches of a map."""


def kept_section(maps: Sequence[Kept], image: Path) -> str:
    """The maps of all policies, layers and heads, drawn on one sheet that is also written as PNG."""
    columns = max(len(kept.held) for kept in maps)
    size = (1.0 + _TILE * columns, 0.8 + 1.35 * _TILE * len(maps))
    inline = save_drawing(lambda figure: _draw(figure, maps, columns), image, size=size)
    note = (
        "A row is the moment after one more token, downwards; a column is a token of the text. Dark: it is still held. "
        "The diagonal is the newest token; a column that stays dark is one that a head keeps."
    )
    drawing = panel("Held after each token", "", inline)
    return f'<section><h2>What is kept</h2>{drawing}<p class="note">{note}</p></section>'


def _draw(figure: Figure, maps: Sequence[Kept], columns: int) -> None:
    grid = figure.subplots(len(maps), columns, squeeze=False)
    for row, kept in zip(grid, maps, strict=True):
        for axes in row[len(kept.held) :]:
            axes.set_axis_off()
        for axes, ((layer, head), held_TT) in zip(row, kept.held.items(), strict=False):
            # What is forgotten never comes back: each token is one bar, from its own moment on.
            T = len(held_TT)
            begins = np.arange(T)
            axes.fill_between(begins, begins, begins + held_TT.sum(0), step="mid", color="#3ca951", linewidth=0)
            axes.set(xlim=(-0.5, T - 0.5), ylim=(T, 0), xticks=[], yticks=[], aspect="equal")
            name = f"layer {layer}, head {head}"
            axes.set_title(f"{kept.policy}\n{name}" if axes is row[0] else name, fontsize=6, loc="left")


def written_section(texts: Sequence[Written]) -> str:
    """All texts; what differs from the uncompressed one is marked from the first character on."""
    parts: list[str] = []
    for one in texts:
        whole = one.same >= len(one.text)
        about = "" if one is texts[0] else f", {one.bits:,.0f} bits a token: "
        about += "" if one is texts[0] else "the same text" if whole else f"the same for {one.same:,} characters"
        rest = "" if whole else f"<mark>{text(one.text[one.same :])}</mark>"
        parts.append(f"<h3>{text(one.policy)}{about}</h3><pre>{text(one.text[: one.same])}{rest}</pre>")
    note = "The same prompt and the same random numbers; marked from the first character that another would have been."
    return f'<section><h2>What is written</h2><p class="note">{note}</p>{"".join(parts)}</section>'

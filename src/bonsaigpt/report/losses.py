"""Validation losses over each other: one curve a run, or one a group of seeds with a band from lowest to highest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bonsaigpt.report.curves import SMALL, WIDE, Curve, chart, seconds_axis
from bonsaigpt.report.history import History
from bonsaigpt.report.markup import legend, panel, text

__all__ = ["loss_section"]


def loss_section(names: Sequence[str], groups: Sequence[Sequence[History]], *, limit: float | None = None) -> str:
    """A section with the curves against steps, tokens where a step is not the same number of them, and time.

    Args:
        groups: for each name its runs; of several the mean is drawn, where all of them were evaluated.
        limit: a loss to mark by a dashed line.
    """
    histories = [history for group in groups for history in group]
    without = [n for n, group in zip(names, groups, strict=True) if not any(h.evaluations for h in group)]
    note = ""
    if without:
        note = f'<p class="note">Without an evaluation, and so without a curve: {text(", ".join(without))}.</p>'
    if len(without) == len(names):
        return f"<section><h2>Validation loss</h2>{note}</section>"
    if any(len(group) > 1 for group in groups):
        note += '<p class="note">Lines: mean over the seeds. Bands: from the lowest to the highest of them.</p>'
    divisor, unit = seconds_axis(max(h.seconds for h in histories))
    per_step = {round(h.tokens / h.steps) for h in histories if h.steps}

    axes = [("steps", "step", 1.0, "steps")]
    if len(per_step) > 1:  # a step is not the same amount of work in all of them
        axes.append(("tokens", "tokens", 1.0, "tokens"))
    axes.append((f"{unit} of training", "seconds", divisor, unit))
    panels = []
    for at, (title, x, scale, x_label) in enumerate(axes):
        curves = [_curve(group, x, scale, colour=i) for i, group in enumerate(groups)]
        label = f"Validation loss against {title}"
        alone = at == 0 and len(axes) == 3
        drawings = [
            chart(curves, name=f"{x}-{size[0]}", label=label, x_label=x_label, size=size, limit=limit)
            for size in ([WIDE, SMALL] if alone else [(SMALL[0], 290)])
        ]
        figure = panel(f"Against {title}", "", *drawings)
        panels.append(f'<div class="whole">{figure}</div>' if alone else figure)
    return (
        "<section><h2>Validation loss, nats a token</h2>"
        f'{note}{legend(names)}<div class="pair">{"".join(panels)}</div></section>'
    )


def _curve(group: Sequence[History], x: str, divisor: float, *, colour: int) -> Curve:
    if len(group) == 1:
        at, loss = group[0].validation(x=x)
        return Curve(series=(at / divisor, loss), colour=colour, best=True)
    points = [dict(zip(h.validation()[0].tolist(), zip(*h.validation(x=x), strict=True), strict=True)) for h in group]
    steps = sorted(set.intersection(*map(set, points))) if points else []
    at_and_loss = np.array([[seed[step] for step in steps] for seed in points], dtype=np.float64).reshape(
        -1, len(steps), 2
    )
    at, loss = at_and_loss[:, :, 0], at_and_loss[:, :, 1]
    if not steps:
        return Curve(series=(np.empty(0), np.empty(0)), colour=colour)
    band = loss.min(axis=0), loss.max(axis=0)
    return Curve(series=(at.mean(axis=0) / divisor, loss.mean(axis=0)), colour=colour, band=band)

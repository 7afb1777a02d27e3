"""``lr.html`` and ``lr.png``: loss against learning rate, and the rate to use."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from bonsaigpt.config import RunConfig
from bonsaigpt.files import write_text
from bonsaigpt.report.curves import WIDE
from bonsaigpt.report.markup import document, figures, panel, table, text
from bonsaigpt.report.rates import RatePlot, Tried, rate_png, rate_svg
from bonsaigpt.study.lr import LrStudy, multiple_of, rates
from bonsaigpt.study.page import commands_section, header, runs_section
from bonsaigpt.study.results import Summary, p_value
from bonsaigpt.study.sweep import Sweep

__all__ = ["lr_table", "write_lr"]

_NONE = "–"
_NARROW = (440, 300)
_LOSS = "Final validation loss, nats a token, against learning rate"


def lr_table(study: LrStudy, base: RunConfig) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal or a page, one multiple a row, the smallest first."""
    first = next((s.point.name for s in study.summaries if s.final is not None and s.difference is None), "the first")
    columns: dict[str, Callable[[Summary], str]] = {
        **{name: _rate_of(base, name) for name in rates(base, 1.0)},
        "seeds": lambda s: f"{len(s.results)}",
        "failed": lambda s: str(len(s.failures)) if s.failures else "",
        "final loss": lambda s: "" if s.final is None else s.final.text(),
        f"against {first}": lambda s: "" if s.difference is None else s.difference.text("+.4f"),
        "p": lambda s: "" if s.difference is None else p_value(s.difference),
        "seconds": lambda s: "" if s.seconds is None else f"{s.seconds.mean:,.1f}",
    }
    cells = {title: [column(s) for s in study.summaries] for title, column in columns.items()}
    kept = {title: column for title, column in cells.items() if any(column)}
    rows = [[s.point.name, *(column[i] or _NONE for column in kept.values())] for i, s in enumerate(study.summaries)]
    return ["rate", *kept], rows


def _rate_of(base: RunConfig, name: str) -> Callable[[Summary], str]:
    return lambda s: f"{rates(base, multiple_of(s.point.name))[name]:.3g}"


def write_lr(study: LrStudy, base: RunConfig, sweep: Sweep) -> list[Path]:
    """Write SWEEP/lr.html and SWEEP/lr.png and return their paths."""
    plot, words = _plot(study, base), _words(study, sweep)
    drawing = panel(_LOSS, "", *(rate_svg(plot, size=size) for size in (WIDE, _NARROW)))
    parts = [
        header(sweep, study.verdict),
        _suggested(study),
        f'<section><h2>Loss against learning rate</h2><p class="note">{text(words)}</p>{drawing}</section>',
        f"<section><h2>Rates</h2>{table(*lr_table(study, base))}</section>",
        runs_section(sweep),
        commands_section(sweep),
    ]
    page = sweep.folder / "lr.html"
    write_text(page, document(f"{sweep.folder.name} · BonsaiGPT", "\n".join(filter(None, parts))))
    note = "\n".join(textwrap.wrap(words, 118))
    return [page, rate_png(plot, sweep.folder / "lr.png", title=f"{sweep.plan.recipe}: {_LOSS.lower()}", note=note)]


def _suggested(study: LrStudy) -> str:
    found = study.suggestion
    if found is None:
        return ""
    word = f"x{found.multiple:.2g} of the recipe's"
    return figures([(f"--{name}", f"{rate:g}", word) for name, rate in found.rates.items()])


def _words(study: LrStudy, sweep: Sweep) -> str:
    """What is drawn, in sentences."""
    words = [
        f"Each training has {study.steps:,} steps, with the recipe's own schedule over them; the loss is that of "
        "the whole validation split after the last one."
    ]
    if len(sweep.plan.seeds) > 1:
        words.append("A dot is the mean over the seeds, a dash one seed, a bar the 95 % interval (Student's t).")
    found = study.suggestion
    if found is not None and len(found.through) == 3:
        words.append("The curve is the parabola through the best rate and its neighbours, the dashed line its bottom.")
    elif found is not None:
        words.append("The dashed line is the best rate, at the edge of what was tried.")
    return " ".join(words)


def _plot(study: LrStudy, base: RunConfig) -> RatePlot:
    def rate(multiple: float) -> float:
        return rates(base, multiple)["optim.lr"]

    found = study.suggestion
    return RatePlot(
        tried=[
            Tried(
                rate=rate(multiple_of(s.point.name)),
                name=s.point.name,
                losses=[result.final for result in s.results.values()],
                mean=s.final.mean if s.final is not None else None,
                margin=s.final.margin if s.final is not None else None,
                failed=bool(s.failures),
            )
            for s in study.summaries
        ],
        suggested=rate(found.multiple) if found is not None else None,
        through=[rate(m) for m in found.through] if found is not None else [],
        x_label="optim.lr",
        label="Final validation loss against learning rate",
    )

"""``batch.html`` and ``batch.png``: the pairs of batch and block size as heat maps, a table and curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bonsaigpt.files import write_text
from bonsaigpt.measure.statistics import Estimate
from bonsaigpt.report.heatmap import HeatMap, heat_png, heat_svg
from bonsaigpt.report.losses import loss_section
from bonsaigpt.report.markup import document, panel, table, text
from bonsaigpt.study.batch import BatchStudy, Outcome
from bonsaigpt.study.page import commands_section, header, runs_section
from bonsaigpt.study.sweep import Sweep

__all__ = ["batch_table", "write_batch"]

_NONE = "–"
_SIZE = (440, 300)


def batch_table(study: BatchStudy) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal or a page, one pair a row."""
    columns: dict[str, Callable[[Outcome], str]] = {
        "steps": lambda o: f"{int(o.summary.point.settings['train.steps']):,}",
        f"loss at {study.context}": lambda o: _text(o.summary.final, ".4f"),
        "at own block": lambda o: _text(o.own, ".4f"),
        "steps to target": lambda o: _reached(o, o.steps_to_target, ",.0f"),
        "seconds to target": lambda o: _reached(o, o.seconds_to_target, ",.1f"),
        "seconds": lambda o: _text(o.summary.seconds, ",.1f"),
        "MiB": lambda o: f"{o.memory_mb.mean:,.0f}" if o.memory_mb is not None else _NONE,
    }
    rows = [[o.pair.name, *(column(o) for column in columns.values())] for o in study.outcomes]
    return ["batch x block", *columns], rows


def write_batch(study: BatchStudy, sweep: Sweep) -> list[Path]:
    """Write SWEEP/batch.html and SWEEP/batch.png and return their paths."""
    maps = _maps(study)
    panels = [panel(m.title, "", heat_svg(m, name=f"heat-{i}", size=_SIZE)) for i, m in enumerate(maps)]
    drawn = [o for o in study.outcomes if o.summary.results]
    curves = [[result.history for result in o.summary.results.values()] for o in drawn]
    parts = [
        header(sweep, study.verdict),
        f'<section><h2>Batch against block</h2>{_compared(study)}<div class="pair">{"".join(panels)}</div></section>',
        f"<section><h2>Pairs</h2>{table(*batch_table(study), swatches=len(drawn) == len(study.outcomes))}</section>",
        loss_section([o.pair.name for o in drawn], curves, limit=study.target) if drawn else "",
        runs_section(sweep),
        commands_section(sweep),
    ]
    page = sweep.folder / "batch.html"
    write_text(page, document(f"{sweep.folder.name} · BonsaiGPT", "\n".join(filter(None, parts))))
    image = heat_png(
        maps,
        sweep.folder / "batch.png",
        title=f"{sweep.plan.recipe}: batch against block",
        note=" ".join(_words(study)[:2]),
    )
    return [page, image]


def _words(study: BatchStudy) -> list[str]:
    """What is compared, in sentences."""
    budget = study.outcomes[0].pair.tokens * int(study.outcomes[0].summary.point.settings["train.steps"])
    seeds = max((len(o.summary.results) for o in study.outcomes), default=0)
    words = [
        f"Every model saw {budget:,} training tokens and was scored on the whole validation split in windows of "
        f"{study.context} tokens, whatever its own block size, so the losses are of the same targets with the same "
        "context.",
        "The fuller the colour, the lower, and the better.",
    ]
    if study.target is not None:
        words.append(
            f"The target is a loss of {study.target:.4f}; between two evaluations a straight line is taken. Learning "
            "rate and schedule are the recipe's, equal in tokens."
        )
    if seeds > 1:
        words.append("Mean over the seeds ± half of the 95 % interval (Student's t).")
    words.append(
        "At own block: the same weights, scored with as much context as they were trained on. Seconds are of training "
        "alone; they compare if nothing else ran, so with one job at a time."
    )
    return words


def _compared(study: BatchStudy) -> str:
    return f'<p class="note">{text(" ".join(_words(study)))}</p>'


def _maps(study: BatchStudy) -> list[HeatMap]:
    def map_(title: str, figure: Callable[[Outcome], Estimate | None], form: str, least: float = 0.25) -> HeatMap:
        found = {(o.pair.batch, o.pair.block): figure(o) for o in study.outcomes}
        return HeatMap(
            title=title,
            values={at: value.mean if value is not None else None for at, value in found.items()},
            labels={at: format(value.mean, form) if value is not None else _NONE for at, value in found.items()},
            x_label="sequences in a step (batch)",
            y_label="tokens in each (block)",
            least_range=least,
        )

    return [
        map_(f"Final loss at {study.context} tokens of context, nats", lambda o: o.summary.final, ".4f", 0.0),
        map_("Final loss at own block, nats", lambda o: o.own, ".4f", 0.0),
        map_("Steps to the target", lambda o: o.steps_to_target, ",.0f"),
        map_("Seconds to the target", lambda o: o.seconds_to_target, ",.1f"),
        map_("Seconds of training", lambda o: o.summary.seconds, ",.1f"),
        map_("Peak memory of the process, MiB", lambda o: o.memory_mb, ",.0f"),
    ]


def _text(found: Estimate | None, form: str) -> str:
    return _NONE if found is None else found.text(form)


def _reached(outcome: Outcome, found: Estimate | None, form: str) -> str:
    if found is not None:
        return found.text(form)
    seeds = len(outcome.summary.results)
    return f"{outcome.reached} of {seeds} seeds" if outcome.reached else _NONE

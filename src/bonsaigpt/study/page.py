"""``sweep.html``: the table of the points, their curves with the spread of the seeds, every run, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bonsaigpt.files import write_text
from bonsaigpt.report.intervals import Interval, interval_chart
from bonsaigpt.report.losses import loss_section
from bonsaigpt.report.markup import document, table, text
from bonsaigpt.study.results import Summary, results, verdict
from bonsaigpt.study.results import table as points_table
from bonsaigpt.study.sweep import Sweep
from bonsaigpt.units import named

__all__ = ["commands_section", "header", "runs_section", "write_sweep"]

_MOST_CURVES = 16
_FEW_CURVES = 8


def write_sweep(sweep: Sweep, summaries: Sequence[Summary]) -> Path:
    """Write SWEEP/sweep.html in one step and return its path."""
    drawn = [s for s in summaries if s.results]
    note = ""
    if len(drawn) > _MOST_CURVES:
        drawn = sorted(drawn, key=lambda s: s.final.mean if s.final else 0.0)[:_FEW_CURVES]
        note = f'<p class="note">Drawn: the {_FEW_CURVES} points of lowest final loss, of {len(summaries)}.</p>'
    curves = [[result.history for result in s.results.values()] for s in drawn]
    parts = [
        header(sweep, verdict(summaries)),
        f"<section><h2>Points</h2>{_explained(sweep)}"
        f"{table(*points_table(sweep, summaries), swatches=len(drawn) == len(summaries))}{note}{_intervals(drawn)}"
        "</section>",
        loss_section([s.point.name for s in drawn], curves) if drawn else "",
        runs_section(sweep),
        commands_section(sweep),
    ]
    path = sweep.folder / "sweep.html"
    write_text(path, document(f"{sweep.folder.name} · BonsaiGPT", "\n".join(filter(None, parts))))
    return path


def header(sweep: Sweep, said: str) -> str:
    """The sweep's name, what it found, and how far it is."""
    plan = sweep.plan
    words = [sweep.status_of(run).word for run in plan.runs]
    done, failed = words.count("done"), words.count("failed")
    points = f"{named(len(plan.points), 'point')} of {plan.recipe}"
    seeds = f"{named(len(plan.seeds), 'seed')} each"
    status = f"all {done} runs done" if done == len(words) else f"{done} of {len(words)} runs done"
    status += f", {failed} failed" if failed else ""
    unbroken = said.replace(" ± ", "\u00a0±\u00a0")  # a line must not end inside a figure
    return (
        f'<header><h1>{text(sweep.folder.name)}</h1><p class="about">{text(unbroken)}</p>'
        f'<p class="status">{text(f"{points} · {seeds} · {status}")}</p></header>'
    )


def _explained(sweep: Sweep) -> str:
    base = sweep.plan.points[0].name
    words = (
        "Validation loss in nats a token, over the whole split; seconds of training alone, with whatever else the "
        "machine was doing."
    )
    if len(sweep.plan.seeds) > 1:
        words += " Mean over the seeds ± half of the 95 % interval (Student's t)."
    if len(sweep.plan.points) > 1:
        words += f" Against the first: difference of the final loss to that of {base}, paired by seed."
    if len(sweep.plan.points) > 1 and len(sweep.plan.seeds) > 1:
        words += (
            " p: how often chance alone would give so large a difference; of twenty points without any effect, one "
            "has p below 0.05."
        )
    return f'<p class="note">{text(words)}</p>'


def _intervals(drawn: Sequence[Summary]) -> str:
    rows = [
        Interval(
            name=s.point.name,
            values=[result.final for result in s.results.values()],
            mean=s.final.mean,
            margin=s.final.margin,
            words=s.final.text(),
        )
        for s in drawn
        if s.final is not None
    ]
    if len(rows) < 2 or all(len(row.values) < 2 for row in rows):
        return ""
    return (
        f'{interval_chart(rows)}<p class="note">Final loss: a tick for each seed, a dot at the mean, a bar over the '
        "95 % interval; where it ends outside the picture, the seeds are too few to say more.</p>"
    )


def runs_section(sweep: Sweep) -> str:
    """Every run, with a link to its own page."""
    found = results(sweep)
    rows: list[list[str]] = []
    links: list[str] = []
    for run in sweep.plan.runs:
        result, status = found.get(run.name), sweep.status_of(run)
        figures = ["–"] * 3
        if result is not None:
            figures = [f"{result.final:.4f}", f"{result.best:.4f}", f"{result.seconds:,.1f}"]
        rows.append([run.name, *figures, f"{status.word}: {status.reason}" if status.reason else status.word])
        links.append(f"{run.name}/report.html" if (sweep.run(run) / "report.html").is_file() else "")
    return (
        f"<section><h2>Runs</h2>{table(['run', 'final loss', 'best loss', 'seconds', ''], rows, links=links)}</section>"
    )


def commands_section(sweep: Sweep) -> str:
    """What made it, and what goes on with it."""
    words = " ".join(f"<span>{text(word)}</span>" for word in sweep.plan.command.split(" "))
    folder = shlex.quote(str(sweep.folder))
    return (
        '<section><h2>Reproduce and go on</h2><dl class="commands"><div><dt>The command that made it; typed again, it '
        "goes on where it was, and with more seeds or values it adds to what is there</dt>"
        f"<dd><pre>{words}</pre></dd></div>"
        f"<div><dt>Each run is one like any other</dt><dd><pre>bonsai sample {text(folder)}/"
        f"{text(sweep.plan.runs[0].name)}</pre></dd></div></dl></section>"
    )

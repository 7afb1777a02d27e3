"""The figures of a sweep: one result a run, one summary a point, and differences paired by seed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.files import write_text
from bonsaigpt.measure.statistics import Difference, Estimate, estimate, paired_difference
from bonsaigpt.report.history import History, read_history
from bonsaigpt.study.plan import Point
from bonsaigpt.study.sweep import Sweep

__all__ = [
    "Result",
    "Summary",
    "compared",
    "difference",
    "p_value",
    "read_result",
    "results",
    "summarise",
    "table",
    "verdict",
    "write_csv",
]

_NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one finished run came to."""

    final: float
    """Validation loss after the last step, nats a token."""
    best: float
    """Lowest validation loss on the way."""
    steps: int
    tokens: int
    """Targets seen in training."""
    seconds: float
    """Of training; evaluation and saving are not in it."""
    memory_mb: float | None
    """Peak of the process, 2^20 bytes."""
    history: History


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One point over its seeds."""

    point: Point
    results: Mapping[int, Result]
    """Of the runs that finished, by seed."""
    failures: Mapping[int, str]
    """Reasons, by seed."""
    final: Estimate | None
    """None where no run finished."""
    best: Estimate | None
    seconds: Estimate | None
    tokens: Estimate | None
    difference: Difference | None
    """Of the final loss to the first point's, over the seeds that both have; None for the first point itself."""


def results(sweep: Sweep) -> dict[str, Result]:
    """What the finished runs came to, by the name of the run."""
    return {
        planned.name: read_result(RunDirectory(sweep.run(planned)))
        for planned in sweep.plan.runs
        if sweep.status_of(planned).word == "done"
    }


def read_result(run: RunDirectory) -> Result:
    """Of a run that has finished."""
    state, history = read_state(run.find("last")), read_history(run)
    return Result(
        final=state["evaluation"]["loss"],  # not from metrics.jsonl: a kill may have come before its last line
        best=state["best_loss"],
        steps=state["step"],
        tokens=state["tokens"],
        seconds=state["seconds"],
        memory_mb=history.memory_mb,
        history=history,
    )


def summarise(sweep: Sweep, found: Mapping[str, Result]) -> list[Summary]:
    """One summary a point, in the plan's order."""
    by_point: dict[str, dict[int, Result]] = {point.name: {} for point in sweep.plan.points}
    failures: dict[str, dict[int, str]] = {point.name: {} for point in sweep.plan.points}
    for planned in sweep.plan.runs:
        if planned.name in found:
            by_point[planned.point][planned.seed] = found[planned.name]
        elif sweep.status_of(planned).word == "failed":
            failures[planned.point][planned.seed] = sweep.status_of(planned).reason
    baseline = by_point[sweep.plan.points[0].name]
    summaries: list[Summary] = []
    for at, point in enumerate(sweep.plan.points):
        own = by_point[point.name]
        summaries.append(
            Summary(
                point=point,
                results=own,
                failures=failures[point.name],
                final=_mean(own, lambda r: r.final),
                best=_mean(own, lambda r: r.best),
                seconds=_mean(own, lambda r: r.seconds),
                tokens=_mean(own, lambda r: r.tokens),
                difference=difference(own, baseline) if at else None,
            )
        )
    return summaries


def difference(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> Difference | None:
    """Of the final losses, over the seeds that both have; None if there is none."""
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    return paired_difference([ours[s].final for s in seeds], [theirs[s].final for s in seeds])


def _mean(found: Mapping[int, Result], figure: Callable[[Result], float]) -> Estimate | None:
    return estimate([figure(result) for result in found.values()]) if found else None


# ------------------------------------------------------------------ in words


def table(sweep: Sweep, summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal or a page, one point a row; a column that says nothing is left out."""
    planned = len(sweep.plan.seeds)
    columns: dict[str, Callable[[Summary], str]] = {
        "seeds": lambda s: f"{len(s.results)}" if len(s.results) == planned else f"{len(s.results)} of {planned}",
        "failed": lambda s: str(len(s.failures)) if s.failures else "",
        "final loss": lambda s: _text(s.final, ".4f"),
        "against the first": lambda s: _text(s.difference, "+.4f"),
        "p": lambda s: "" if s.difference is None else p_value(s.difference),
        "best loss": lambda s: _text(s.best, ".4f"),
        "seconds": lambda s: f"{s.seconds.mean:,.1f}" if s.seconds is not None else "",
        "tokens": lambda s: f"{s.tokens.mean:,.0f}" if s.tokens is not None else "",
    }
    cells = {title: [column(s) for s in summaries] for title, column in columns.items()}
    kept = {title: column for title, column in cells.items() if any(column)}
    rows = [[s.point.name, *(column[i] or _NONE for column in kept.values())] for i, s in enumerate(summaries)]
    return ["point", *kept], rows


def p_value(found: Difference) -> str:
    """``0.012``; empty where one pair tells nothing."""
    if found.p is None:
        return ""
    return "< 0.001" if found.p < 0.001 else f"{found.p:.2g}" if found.p < 0.1 else f"{found.p:.2f}"


def verdict(summaries: Sequence[Summary]) -> str:
    """What the figures say, in one or two sentences, and what they do not."""
    scored = [s for s in summaries if s.final is not None]
    if not scored:
        return "No run has finished yet."
    best = min(scored, key=lambda s: s.final.mean if s.final else math.inf)
    assert best.final is not None
    seeds = f"over {best.final.n} seeds" if best.final.n > 1 else "with one seed"
    if best.failures:
        seeds += f" ({len(best.failures)} more failed)"
    if len(summaries) == 1:
        return f"Final validation loss: {best.final.text()} nats {seeds}."
    said = f"Lowest final validation loss: {best.point.name}, {best.final.text()} nats {seeds}"
    rivals = [s for s in scored if s is not best]
    if not rivals:
        return f"{said}; no other point has finished."
    second = min(rivals, key=lambda s: s.final.mean if s.final else math.inf)
    gap = difference(best.results, second.results)
    if gap is None:
        return f"{said}. It shares no finished seed with {second.point.name}, the next."
    return f"{said}. {compared(gap, second.point.name)}"


def compared(gap: Difference, other: str) -> str:
    """A paired difference to the next best, and how far it can be trusted."""
    said = f"Against the next, {other}: {gap.text('+.4f')} nats"
    if gap.p is None:
        return f"{said}, which a single seed cannot tell from chance."
    words = f"paired by seed, p {value}" if (value := p_value(gap)).startswith("<") else f"paired by seed, p = {value}"
    return f"{said} ({words})." if gap.is_significant else f"{said}, which may be chance ({words})."


def write_csv(sweep: Sweep, summaries: Sequence[Summary], path: Path) -> Path:
    """One line a point, full precision; ``_margin`` is half of the 95 % interval."""
    settings = list(dict.fromkeys(name for point in sweep.plan.points for name in point.settings))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = ("final_loss", "best_loss", "seconds", "tokens", "difference")
    header = [f"{figure}{tail}" for figure in figures for tail in ("", "_standard_error", "_margin")]
    writer.writerow(["point", *settings, "finished", "failed", *header, "difference_p"])
    for s in summaries:
        row: list[object] = [s.point.name, *(s.point.settings.get(name, "") for name in settings)]
        row += [len(s.results), len(s.failures)]
        for found in (s.final, s.best, s.seconds, s.tokens, s.difference):
            row += [None] * 3 if found is None else [found.mean, found.standard_error, found.margin]
        writer.writerow([*row, s.difference.p if s.difference is not None else None])
    write_text(path, buffer.getvalue())
    return path


def _text(found: Estimate | None, form: str) -> str:
    return "" if found is None else found.text(form)

"""``context.html``, ``context.png``, ``context.csv`` and ``context-positions.csv``: loss by position, by length of the
window, and by steps of training at a longer one."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonsaigpt.files import write_text
from bonsaigpt.report.markup import document, panel, table, text
from bonsaigpt.study.context import ContextPoint, edges
from bonsaigpt.study.drawing import save_drawing
from bonsaigpt.units import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NEAR", "ContextRun", "ContextStudy", "context_table", "write_context"]

NEAR = 0.01
"""Nats within which a loss counts as reached."""
_SHOWN = 0.4
"""Nats above windows of the training context beyond which a curve leaves the plot."""
_COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)


@dataclass(frozen=True, kw_only=True)
class ContextRun:
    """All that was found about one run."""

    label: str
    block: int
    home: int
    """Length of the windows that all is held against."""
    points: Sequence[ContextPoint]
    raw: ContextPoint | None = None
    """The training context before each token, read anew from raw text."""
    goal: str | None = None
    """The run that was trained at the longer length, which steps are held against."""

    @property
    def run(self) -> str:
        """What a user types for it."""
        return self.label.partition("@")[0]

    def at(self, way: str, length: int) -> ContextPoint | None:
        """Without training."""
        return next((p for p in self.points if (p.way, p.length, p.steps) == (way, length, 0)), None)

    def curve(self, way: str) -> list[ContextPoint]:
        """Its points by steps at the length that was trained at; the first of them may have none."""
        steps = sorted((p for p in self.points if p.way == way and p.steps), key=lambda p: p.steps)
        start = self.at(way, steps[0].length) if steps else None
        return [start, *steps] if start is not None else steps

    @property
    def ways(self) -> list[str]:
        """In the order in which they were read."""
        return list(dict.fromkeys(p.way for p in self.points))


@dataclass(frozen=True, kw_only=True)
class ContextStudy:
    """Several runs and one text."""

    runs: Sequence[ContextRun]
    lengths: Sequence[int]
    tokens: int
    options: Sequence[str]
    """Flags that say which text was read."""

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return self.lengths[-1]

    @property
    def verdict(self) -> str:
        """What to conclude, in sentences."""
        return " ".join(self._said(run) for run in self.runs)

    def _said(self, run: ContextRun) -> str:
        plain = [p for n in self.lengths if n >= run.home and (p := run.at(run.ways[0], n)) is not None]
        words = [f"{run.label} reads {plain[0].loss:.4f} nats in windows of {run.home}, its own context."]
        kept = next((i for i, p in enumerate(plain) if p.low > 0), len(plain))
        if kept == len(plain):
            words.append(f"{_capital(run.ways[0])} it loses nothing up to {self.longest} tokens.")
        else:
            lost = plain[kept]
            words.append(
                f"{_capital(run.ways[0])} it reaches {plain[kept - 1].length} tokens: at {lost.length} it is "
                f"{lost.added:+.4f}."
            )
        last = [p for p in run.points if p.length == self.longest and not p.steps and p.length > run.block]
        if last:
            best = min(last, key=lambda p: p.loss)
            helps = "helps" if best.high < 0 else "loses least" if best.low > 0 else "loses nothing"
            words.append(
                f"Without training, at {self.longest} tokens, '{best.way}' {helps}: {best.added:+.4f} ({best.low:+.4f} "
                f"to {best.high:+.4f})."
            )
        return " ".join([*words, *self._said_of_steps(run)])

    def _said_of_steps(self, run: ContextRun) -> list[str]:
        curves = {way: run.curve(way) for way in run.ways}
        curves = {way: curve for way, curve in curves.items() if curve}
        if not curves:
            return []
        length = next(iter(curves.values()))[-1].length
        if run.goal is not None:
            found = [f"'{way}' {_reached(curve)}" for way, curve in curves.items()]
            return [f"Stretched to {length}, within {NEAR} nats of {run.goal}: {', '.join(found)}."]
        best = min((curve[-1] for curve in curves.values()), key=lambda p: p.loss)
        return [f"Stretched to {length}, '{best.way}' is best after {best.steps} steps: {best.added:+.4f}."]


def _reached(curve: Sequence[ContextPoint]) -> str:
    near = next((p.steps for p in curve if p.behind is not None and p.behind[0] <= NEAR), None)
    return f"not in {curve[-1].steps} steps" if near is None else f"after {named(near, 'step')}" if near else "at once"


def context_table(study: ContextStudy) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the loss at each length; then, of the longest of them, what it is above windows of the training
    context, and what above a model that was trained at that length."""
    several = len(study.runs) > 1
    header = [*(["run"] if several else []), "way", "steps", *(f"{n:,}" for n in study.lengths)]
    header += ["to own windows", "95 % interval", "to the goal"]
    rows = []
    for run in study.runs:
        for way, steps in dict.fromkeys((p.way, p.steps) for p in _all(run)):
            found = {p.length: p for p in _all(run) if (p.way, p.steps) == (way, steps)}
            last = found[max(found)]
            rows.append(
                [
                    *([run.run] if several else []),
                    way,
                    str(steps),
                    *(f"{found[n].loss:.4f}" if n in found else "" for n in study.lengths),
                    f"{last.added:+.4f}",
                    f"{last.low:+.4f} to {last.high:+.4f}",
                    "" if last.behind is None else f"{last.behind[0]:+.4f}",
                ]
            )
    return header, rows


def _all(run: ContextRun) -> Iterable[ContextPoint]:
    return [*run.points, *([run.raw] if run.raw is not None else [])]


def write_context(study: ContextStudy, folder: Path) -> list[Path]:
    """Write the page, the plot and the tables, and return their paths."""
    page, image, figures = (folder / f"context.{ending}" for ending in ("html", "png", "csv"))
    positions = folder / "context-positions.csv"
    write_text(figures, _csv(study))
    write_text(positions, _positions(study))
    inline = save_drawing(lambda figure: _draw(figure, study), image, size=(13.0, 0.6 + 4.0 * len(study.runs)))
    title = ", ".join(run.run for run in study.runs)
    commands = list(dict.fromkeys(_command(study, run, p) for run in study.runs for p in run.points))
    parts = [
        f'<header><h1>{text(title)}: the context</h1><p class="about">{text(study.verdict)}</p></header>',
        f"<section><h2>Loss</h2>{panel('By position, by length, by steps', '', inline)}"
        f'<p class="note">{text(_protocol(study))}</p></section>',
        f"<section><h2>By length of the window</h2>{table(*context_table(study))}</section>",
        f"<section><h2>Commands</h2><pre>{text(chr(10).join(commands))}</pre></section>",
    ]
    write_text(page, document(f"{title}: the context · BonsaiGPT", "\n".join(parts)))
    return [page, image, figures, positions]


def _protocol(study: ContextStudy) -> str:
    return (
        f"The same {study.tokens:,} tokens were scored at every length: pieces of {study.longest:,}, which shorter "
        "windows cut up. A loss is the mean over all positions of the windows, their first ones included. Differences "
        "are paired token by token with windows of the training context; intervals are of 95 %, by a bootstrap over "
        "blocks of 256 tokens. Curves over positions are of the longest windows. Steps are of training at the longer "
        "length from the run's weights and optimizer, each number of them with a schedule of its own. A curve that "
        f"leaves the plot is more than {_SHOWN} nats above."
    )


def _command(study: ContextStudy, run: ContextRun, p: ContextPoint) -> str:
    """What measures a point: a stretched run is one to keep, of all else only the loss is of use."""
    name = shlex.quote(run.label)
    options = "".join(f" {shlex.quote(word)}" for word in study.options)
    if p.steps:
        rope = f" --rope {p.way}" if p.way in ("linear", "ntk", "yarn") else ""
        made = f"{Path(run.run).name}-{p.length}-{p.steps}{'-' + p.way if rope else ''}"
        stretch = f"bonsai stretch {name} --block-size {p.length}{rope} --steps {p.steps} --name {shlex.quote(made)}"
        return f"{stretch} && bonsai eval {shlex.quote(made)}"
    return f"bonsai study context {name} --only {shlex.quote(p.way)} --steps 0 --fast{options}"


def _csv(study: ContextStudy) -> str:
    figures = "length,steps,loss,added,low,high,behind,behind_low,behind_high"
    rows: list[list[Any]] = [["run", "block", "way", *figures.split(","), "frontier", "command"]]
    best: dict[int, ContextPoint] = {}  # of each length; of equal ones that with the fewest steps
    for p in sorted((p for run in study.runs for p in run.points), key=lambda p: (p.added, p.steps)):
        best.setdefault(p.length, p)
    for run in study.runs:
        for p in _all(run):
            numbers = [f"{x:.6g}" for x in (p.loss, p.added, p.low, p.high, *(p.behind or ()))]
            numbers += [""] * (7 - len(numbers))
            command = "" if p is run.raw else _command(study, run, p)
            rows.append([run.run, run.block, p.way, p.length, p.steps, *numbers, int(p is best.get(p.length)), command])
    return _written(rows)


def _positions(study: ContextStudy) -> str:
    rows: list[list[Any]] = [["run", "way", "length", "steps", "from", "to", "loss"]]
    for run in study.runs:
        for p in _all(run):
            places = edges(p.length, run.block)
            for (start, end), loss in zip(pairwise(places), p.by_position, strict=True):
                rows.append([run.run, p.way, p.length, p.steps, start, end, f"{loss:.6g}"])
    return _written(rows)


def _written(rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _draw(figure: Figure, study: ContextStudy) -> None:
    """A row of panels for each run."""
    grown = any(p.steps for run in study.runs for p in run.points)
    all_axes = figure.subplots(len(study.runs), 3 if grown else 2, squeeze=False, sharey="row")
    names = list(dict.fromkeys(p.way for run in study.runs for p in _all(run)))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for run, row in zip(study.runs, all_axes, strict=True):
        _draw_positions(row[0], study, run, colours)
        _draw_lengths(row[1], run, colours)
        if grown:
            _draw_steps(row[2], run, colours)
        start = run.at(run.ways[0], run.home)
        losses = [p.loss for p in _all(run) if start is None or p.loss < start.loss + _SHOWN]
        row[0].set_ylim(min(losses) - 0.1, max(losses) + 0.15)
        row[0].set_ylabel("loss, nats a token")
        row[0].set_title(f"{run.label}, trained at {run.block}", loc="left", fontsize=9)
    for name, colour in colours.items():
        all_axes[0, 0].plot([], [], color=colour, label=name)
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)


def _draw_positions(axes: Any, study: ContextStudy, run: ContextRun, colours: dict[str, str]) -> None:
    for p in _all(run):
        if p.length == study.longest and not p.steps:
            places = edges(p.length, run.block)
            middles = [(a + b + 1) / 2 for a, b in pairwise(places)]
            axes.plot(middles, p.by_position, color=colours[p.way], linewidth=1.2)
    axes.axvline(run.block, color="#aaa", linewidth=0.8, linestyle=":")
    _doubling(axes, f"position in a window of {study.longest:,} (dotted: trained at)")


def _draw_lengths(axes: Any, run: ContextRun, colours: dict[str, str]) -> None:
    home = run.at(run.ways[0], run.home)
    for way in run.ways:
        points = sorted((p for p in run.points if p.way == way and not p.steps), key=lambda p: p.length)
        if points and home is not None and points[0].length > run.home:
            points = [home, *points]  # up to there all ways are one
        ends = [[p.added - p.low for p in points], [p.high - p.added for p in points]]
        axes.errorbar([p.length for p in points], [p.loss for p in points], yerr=ends, color=colours[way], marker=".")
    axes.axvline(run.block, color="#aaa", linewidth=0.8, linestyle=":")
    _doubling(axes, "length of the window, tokens")


def _draw_steps(axes: Any, run: ContextRun, colours: dict[str, str]) -> None:
    goals = set()
    for way in run.ways:
        curve = run.curve(way)
        axes.plot([p.steps for p in curve], [p.loss for p in curve], color=colours[way], marker="o", markersize=4)
        goals |= {p.loss - p.behind[0] for p in curve if p.behind is not None}
    for goal in list(goals)[:1]:
        axes.axhline(goal, color="#666", linewidth=0.8, linestyle="--", label=run.goal)
        axes.annotate(f"{run.goal}", (0, goal), fontsize=7, color="#666", va="bottom")
    axes.set_xscale("symlog", linthresh=10)
    length = next((p.length for p in run.points if p.steps), None)
    axes.set_xlabel(f"steps of training at {length:,} tokens" if length else "not stretched")
    steps = sorted({p.steps for p in run.points})
    axes.set_xticks(steps, [f"{n:,}" for n in steps])
    axes.minorticks_off()


def _doubling(axes: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(label)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]

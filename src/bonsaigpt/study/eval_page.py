"""A page of details of an evaluation: figures with their errors, loss by position, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bonsaigpt.files import writing
from bonsaigpt.measure.details import Details
from bonsaigpt.report.markup import document, figures, panel, table, text
from bonsaigpt.study.drawing import save_drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_details"]

_GREEN, _INK = "#2c6e4d", "#23261f"


def write_details(details: Details, folder: Path, *, label: str, scored: str, command: str) -> Path:
    """``details.html``, ``calibration.png`` and ``positions.png``; the page's path.

    Raises:
        OutputError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    entries = [
        ("loss, nats a token", details.loss.text(), "± one standard error, over rows"),
        ("perplexity", details.perplexity.text(".2f"), ""),
        ("first choice right", details.first_choice.times(100).text(".2f") + " %", ""),
        ("calibration error", f"{details.calibration_error:.2%}", "expected, of the first choice"),
    ]
    if details.bits_per_byte is not None:
        entries.insert(2, ("bits per byte", details.bits_per_byte.text(), ""))
    if details.answers is not None:
        entries.insert(2, ("answers exactly right", details.answers.times(100).text(".2f") + " %", ""))
    stretches = [
        [f"{s.first} to {s.last}" if s.last > s.first else str(s.first), f"{s.targets:,}", s.loss.text()]
        for s in details.positions
    ]
    bins = [
        [f"{b.low:.0%} to {b.high:.0%}", f"{b.targets:,}", f"{b.confidence:.1%}", f"{b.right:.1%}"]
        for b in details.bins
    ]
    parts = [
        f'<header><h1>{text(label)}</h1><p class="about">{text(scored)}</p></header>',
        f"<section>{figures(entries)}</section>",
        "<section><h2>Loss by position</h2>",
        panel("", "Tokens that stand before a target in its window.", _positions(details, folder / "positions.png")),
        table(["tokens before", "targets", "loss, nats"], stretches),
        "</section><section><h2>Calibration</h2>",
        panel(
            "", "On the dashed line probabilities are what they say.", _reliability(details, folder / "calibration.png")
        ),
        table(["first choice's probability", "targets", "mean", "right"], bins),
        f"</section><section><h2>Reproduce</h2><pre>{text(command)}</pre></section>",
    ]
    path = folder / "details.html"
    with writing(path):
        path.write_text(document(f"{label} · BonsaiGPT", "\n".join(parts)), encoding="utf-8")
    return path


def _positions(details: Details, image: Path) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = [(s.first + s.last) / 2 for s in details.positions]
        errors = [s.loss.error or 0.0 for s in details.positions]
        axes.errorbar(
            places, [s.loss.value for s in details.positions], yerr=errors, color=_GREEN, marker="o", capsize=3
        )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens before the target")
        axes.set_ylabel("nats a token")

    return save_drawing(draw, image, size=(5.5, 3.2))


def _reliability(details: Details, image: Path) -> str:
    def draw(figure: Figure) -> None:
        axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        axes.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1)
        width = details.bins[0].high - details.bins[0].low
        middles = [(b.low + b.high) / 2 for b in details.bins]
        axes.bar(middles, [b.right for b in details.bins], width=0.94 * width, color=_GREEN, alpha=0.55)
        axes.plot([b.confidence for b in details.bins], [b.right for b in details.bins], "o", color=_GREEN)
        axes.set_ylabel("share that is right")
        axes.set_ylim(0, 1)
        below.bar(middles, [b.targets for b in details.bins], width=0.94 * width, color=_INK, alpha=0.4)
        below.set_xlabel("probability of the first choice")
        below.set_ylabel("targets")
        below.set_xlim(0, 1)

    return save_drawing(draw, image, size=(4.2, 4.4))

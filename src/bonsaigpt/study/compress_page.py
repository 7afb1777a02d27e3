"""``compress.html``, ``compress.png`` and ``compress.csv``: loss against size and speed."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bonsaigpt.files import write_text
from bonsaigpt.report.markup import document, panel, table, text
from bonsaigpt.study.compress import SCRATCH, Cell, against, best_of, frontier
from bonsaigpt.study.drawing import save_drawing
from bonsaigpt.units import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CompressStudy", "compress_table", "write_compress"]

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7")


@dataclass(frozen=True, kw_only=True)
class CompressStudy:
    """All that was found about one run."""

    label: str
    command: str
    healed: str
    """With what: ``the text and the teacher's logits``."""
    dense: Cell
    cells: Sequence[Cell]

    def group(self, cell: Cell) -> list[Cell]:
        """The cells of the same share and steps."""
        return [other for other in self.cells if (other.share, other.heal) == (cell.share, cell.heal)]

    @property
    def verdict(self) -> str:
        """What to conclude of each share and number of steps, in sentences."""
        firsts = {(cell.share, cell.heal): cell for cell in reversed(self.cells)}
        return " ".join(self._said(firsts[key]) for key in sorted(firsts, key=lambda k: (-k[0], k[1])))

    def _said(self, cell: Cell) -> str:
        group = self.group(cell)
        best = best_of(group)
        when = f"after {named(best.heal, 'step')} of healing" if best.heal else "before healing"
        words = [f"At {best.share:.0%}, {when}: {best.kind}, {best.cost.text('+.4f')} nats."]
        for other in group:
            if other is best:
                continue
            more = against(other, best)
            if more.margin is None:
                said = "one seed, which says nothing of chance"
            elif more.is_significant:
                said = "beyond chance" if more.mean > 0 else "so the choice by the first half was wrong"
            else:
                said = "within chance"
            words.append(f"{other.kind} is {more.text('+.4f')} to that ({said}).")
        return " ".join(words)


def compress_table(study: CompressStudy) -> tuple[list[str], list[list[str]]]:
    """Header and rows, the teacher first; a star marks the choice by the first half of the validation split."""
    header = ["structure", "share", "healing", "values", "tokens/s", "added nats", "to the choice", "", "becomes"]
    dense = study.dense
    rows = [[dense.kind, "100%", "", f"{dense.stored:,}", f"{dense.speed:,.0f}", "", "", "", ""]]
    for cell in study.cells:
        best = best_of(study.group(cell))
        more = against(cell, best)
        rows.append(
            [
                cell.kind,
                f"{cell.share:.0%}",
                str(cell.heal),
                f"{cell.stored:,}",
                f"{cell.speed:,.0f}",
                cell.cost.text("+.4f"),
                "" if cell is best else more.text("+.4f"),
                "*" if cell is best else "",
                cell.becomes,
            ]
        )
    return header, rows


def write_compress(study: CompressStudy, folder: Path) -> list[Path]:
    """Write the page, the plot and the table, and return their paths."""
    page, image, figures = (folder / f"compress.{ending}" for ending in ("html", "png", "csv"))
    write_text(figures, _csv(study))
    inline = save_drawing(lambda figure: _draw(figure, study), image, size=(10.5, 4.8))
    parts = [
        f'<header><h1>{text(study.label)}: compression</h1><p class="about">{text(study.verdict)}</p></header>',
        f"<section><h2>Loss against size and speed</h2>{panel('All structures', '', inline)}"
        f'<p class="note">{text(_protocol(study))}</p></section>',
        f"<section><h2>Structures</h2>{table(*compress_table(study))}</section>",
        f"<section><h2>Command</h2><pre>{text(study.command)}</pre></section>",
    ]
    write_text(page, document(f"{study.label}: compression · BonsaiGPT", "\n".join(parts)))
    return [page, image, figures]


def _protocol(study: CompressStudy) -> str:
    seeds = len(study.cells[0].losses) if study.cells else 0
    return (
        f"One teacher ({study.dense.losses[0].test:.4f} nats), {named(seeds, 'seed')}: orders of the training text for "
        f"calibration and healing, the same for all structures. Healed with {study.healed}. Added nats are on the "
        "second half of the validation split, the choice of a structure (star) is by the first; nothing else is "
        "chosen, every figure is of the model that the last step left. ±: half of the 95 % interval over the seeds "
        "(Student's t); beyond chance: it leaves 0 out; differences are paired by seed. Values are counted once "
        "where they are used twice; a value has 4 bytes. Tokens a second: one row, decoded greedily; a weight "
        "whose factors would take longer is merged for that."
    )


def _csv(study: CompressStudy) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = "share,heal,stored,bytes,tokens_per_second,validation,test,added,margin,to_best,to_best_margin,p"
    writer.writerow(["structure", *figures.split(","), "best", "frontier", "becomes", "test_by_seed", "command"])
    cells = [study.dense, *study.cells]
    for cell, front in zip(cells, frontier(cells, lambda c: c.stored), strict=True):
        best = best_of(study.group(cell)) if cell in study.cells else cell
        cost, more = cell.cost, against(cell, best)
        test = [one.test for one in cell.losses]
        row = [cell.share, cell.heal, cell.stored, cell.bytes, cell.speed, cell.chosen_by, sum(test) / len(test)]
        row += [cost.mean, cost.margin, more.mean, more.margin, more.p]
        plain = ["" if value is None else f"{value:.9g}" for value in row]
        seeds = " ".join(f"{value:.6f}" for value in test)
        writer.writerow([cell.kind, *plain, int(cell is best), int(front), cell.becomes, seeds, _command(study, cell)])
    return out.getvalue()


def _command(study: CompressStudy, cell: Cell) -> str:
    """What makes such a run, or scores the dense one; the study alone trains a smaller MLP from scratch."""
    run = study.label.partition("@")[0]
    if cell is study.dense:
        return shlex.join(["bonsai", "eval", run])
    if cell.kind == SCRATCH:
        return study.command
    words = ["bonsai", "compress", run, "--structure", cell.kind, "--target-params", f"{cell.share:g}"]
    if cell.heal:
        words += ["--heal", str(cell.heal), *(["--distill"] if "teacher" in study.healed else [])]
    return shlex.join(words)


def _draw(figure: Figure, study: CompressStudy) -> None:
    """Two panels: added loss against values (and bytes), and against tokens a second; what others beat is faint."""
    from matplotlib.ticker import EngFormatter

    kinds = list(dict.fromkeys(cell.kind for cell in study.cells))
    steps = sorted({cell.heal for cell in study.cells})
    sizes, speeds = figure.subplots(1, 2, sharey=True)
    for axes, place, worse in (
        (sizes, lambda c: c.stored, lambda c: c.stored),
        (speeds, lambda c: c.speed, lambda c: -c.speed),
    ):
        for cell, front in zip(study.cells, frontier(study.cells, worse), strict=True):
            colour = _COLOURS[kinds.index(cell.kind) % len(_COLOURS)]
            marker, fade = "os^Dv"[steps.index(cell.heal) % 5], 1.0 if front else 0.4
            axes.errorbar(
                [place(cell)],
                [cell.cost.mean],
                yerr=None if cell.cost.margin is None else [cell.cost.margin],
                color=colour,
                marker=marker,
                alpha=fade,
                linestyle="",
                markersize=6,
            )
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(0, color="#aaa", linewidth=0.8)
        axes.axvline(place(study.dense), color="#aaa", linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    sizes.set_xlabel("values stored, all of the model (dotted: dense)")
    sizes.set_ylabel("added loss, nats a token")
    above = sizes.secondary_xaxis("top", functions=(lambda x: 4 * x, lambda x: x / 4))
    above.set_xlabel("bytes")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    speeds.set_xlabel("tokens a second, one row (dotted: dense)")
    for number, kind in enumerate(kinds):
        speeds.plot([], [], color=_COLOURS[number % len(_COLOURS)], marker="o", linestyle="", label=kind)
    for number, count in enumerate(steps):
        words = f"{named(count, 'step')} of healing" if count else "before healing"
        speeds.plot([], [], color="#888", marker="os^Dv"[number % 5], linestyle="", label=words)
    handles, labels = speeds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(study.label, x=0.01, ha="left")

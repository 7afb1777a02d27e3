"""``kv.html``, ``kv.png`` and ``kv.csv``: bits against loss, every point with its interval and its command."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from bonsaigpt.files import write_text
from bonsaigpt.kv import read_policy, write_policy
from bonsaigpt.measure.statistics import with_margin
from bonsaigpt.report.markup import document, panel, table, text
from bonsaigpt.study.drawing import save_drawing
from bonsaigpt.study.kv import OWN, KVPoint, Reference, frontier
from bonsaigpt.study.kv_search import Found
from bonsaigpt.study.kv_seen import Kept, Written
from bonsaigpt.study.kv_seen_page import kept_section, written_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KVStudy", "kv_table", "write_kv"]

_SHOWN = 0.3
"""Nats of added loss beyond which a point is at the edge of the plot."""


@dataclass(frozen=True, kw_only=True)
class KVStudy:
    """All that was found about one model."""

    label: str
    block: int
    tokens: int
    chunk: int
    references: Sequence[Reference]
    best: Reference
    points: Sequence[KVPoint]
    found: Found | None = None
    kept: Sequence[Kept] = ()
    """What some policies hold of a text."""
    written: Sequence[Written] = ()
    """What the model writes through some policies, the uncompressed one first."""

    @property
    def _of_base(self) -> list[KVPoint]:
        return [p for p in self.points if p.model == self.label]

    @property
    def _of_variants(self) -> list[KVPoint]:
        return [p for p in self.points if p.model != self.label]

    @property
    def verdict(self) -> str:
        """What to conclude, in sentences."""
        words = [f"Best uncompressed: {self.best.name}, {self.best.loss:.4f} nats a token."]
        eight = [p for p in self._of_base if p.policy.split(", ", 1)[1:] in (["int8"], ["e4m3"], ["e5m2"])]
        eight = [p for p in eight if p.policy.startswith(f"window({self.block})")]
        if eight:
            near = sorted(eight, key=lambda p: p.kl)
            told = [f"{p.policy.split(', ')[1]} (KL {p.kl:.5f}; {p.low:+.4f} to {p.high:+.4f} nats)" for p in near]
            words.append(f"Of the 8-bit formats, the nearest to exact first: {', '.join(told)}.")
        for limit in (0.01, 0.05):
            for of, points in (("", self._of_base), ("by training, ", self._of_variants)):
                within = [p for p in points if p.high <= limit]
                if within:
                    p = min(within, key=lambda p: p.bits)
                    model = f" of {p.model}" if of else ""
                    words.append(
                        f"At most {limit:+} nats, the interval included: {of}{p.bits:,.0f} bits a token, "
                        f"{p.factor:.1f} times fewer, with {p.policy}{model}."
                    )
        if self.found is not None:
            words.append(
                f"Found by search among {self.found.tried} policies on other text: {self.found.bits:,.0f} bits a token "
                f"at {self.found.added:+.4f} nats there."
            )
        return " ".join(words)


def kv_table(points: Sequence[KVPoint]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, by bits; a star marks what no other policy beats."""
    best = frontier(points)
    several = len({p.model for p in points}) > 1
    header = [
        *(["model"] if several else []),
        "policy",
        "bits/token",
        "times fewer",
        "added nats",
        "95 % interval",
        "KL",
        "KL 99 %",
        "agree",
        "slope",
        "",
    ]
    rows = [
        [
            *([p.model] if several else []),
            p.policy,
            f"{p.bits:,.0f}",
            f"{p.factor:.2f}",
            f"{p.added:+.5f}",
            f"{p.low:+.5f} to {p.high:+.5f}",
            f"{p.kl:.5f}",
            f"{p.kl_99:.4f}",
            f"{p.agree:.2%}",
            with_margin(p.slope, p.slope_margin, "+.4f"),
            "*" if star else "",
        ]
        for p, star in zip(points, best, strict=True)
    ]
    return header, [row for _, row in sorted(zip([-p.bits for p in points], rows, strict=True))]


def write_kv(study: KVStudy, folder: Path) -> list[Path]:
    """Write the page, the plot and the table, and return their paths."""
    page, image, figures = (folder / f"kv.{ending}" for ending in ("html", "png", "csv"))
    write_text(figures, _csv(study))
    inline = save_drawing(lambda figure: _draw(figure, study), image, size=(9.5, 5.5))
    parts = [
        f'<header><h1>{text(study.label)}: the cache</h1><p class="about">{text(study.verdict)}</p></header>',
        f"<section><h2>Bits against loss</h2>{panel('All policies', '', inline)}"
        f'<p class="note">{text(_protocol(study))}</p></section>',
        f"<section><h2>References</h2>{table(*_references(study))}</section>",
        f"<section><h2>Policies</h2>{table(*kv_table(study.points))}</section>",
        f"<section><h2>Loss by position</h2>{table(*_positions(study))}</section>",
        kept_section(study.kept, folder / "kv-kept.png") if study.kept else "",
        written_section(study.written) if study.written else "",
        "<section><h2>Commands</h2><pre>"
        + text("\n".join(_command(study, p) for p in study.points))
        + "</pre></section>",
    ]
    write_text(page, document(f"{study.label}: the cache · BonsaiGPT", "\n".join(parts)))
    return [page, image, figures, *([folder / "kv-kept.png"] if study.kept else [])]


def _command(study: KVStudy, point: KVPoint) -> str:
    run = point.model.partition("@")[0]
    if point.policy == OWN:
        return f"bonsai eval {shlex.quote(run)}"
    words = write_policy(read_policy(point.policy).model_copy(update={"chunk": study.chunk}))
    return f"bonsai eval {shlex.quote(run)} --kv {shlex.quote(words)}"


def _protocol(study: KVStudy) -> str:
    return (
        f"{study.tokens:,} tokens of the validation text were scored, all at positions from the training context of "
        f"{study.block} on, {study.chunk} read at a time; those count at 16 bits beside what the cache holds. Bits are "
        f"those held over the {study.block} tokens of the training context, the scale of the axis is logarithmic. "
        "Added loss is paired token by token with the best uncompressed reference; intervals are of 95 %, by a "
        "bootstrap over blocks of 256 tokens. Slope: how the added loss changes from the first scored position to the "
        "last. Variants are other runs, trained to need less, read on the same text. A star or a full dot: no other "
        "policy has fewer bits and less loss. Random eviction and short windows in 16 bits are floors: what does not "
        "beat them is worth nothing on this text."
    )


def _references(study: KVStudy) -> tuple[list[str], list[list[str]]]:
    rows = [[r.name, f"{r.loss:.4f}", f"{r.loss - study.best.loss:+.4f}"] for r in study.references]
    return ["uncompressed", "loss, nats", "to the best"], rows


def _positions(study: KVStudy) -> tuple[list[str], list[list[str]]]:
    curves = [(r.name, r.by_position) for r in study.references]
    curves += [(_name(study, p), p.by_position) for p in study.points]
    blocks = range(1, len(curves[0][1]))  # the first one is not scored
    header = ["", *(f"{b * study.block:,}" for b in blocks)]
    return header, [[name, *(f"{curve[b]:.3f}" for b in blocks)] for name, curve in curves]


def _name(study: KVStudy, point: KVPoint) -> str:
    return point.policy if point.model == study.label else f"{point.model}: {point.policy}"


def _csv(study: KVStudy) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = "bits_per_token,times_fewer,loss,added,low,high,kl,kl_99,agree,slope,slope_margin"
    writer.writerow(["model", "policy", *figures.split(","), "frontier", "command"])
    for p, best in zip(study.points, frontier(study.points), strict=True):
        row = [p.bits, p.factor, p.loss, p.added, p.low, p.high, p.kl, p.kl_99, p.agree, p.slope, p.slope_margin]
        told = ("" if figure is None else f"{figure:.6g}" for figure in row)
        writer.writerow([p.model, p.policy, *told, int(best), _command(study, p)])
    return out.getvalue()


_GROUPS = {
    "short windows": ("#4269d0", "s"),
    "formats": ("#efb118", "o"),
    "choices of tokens": ("#3ca951", "^"),
    "random": ("#9c6b4e", "x"),
    "both": ("#a463f2", "D"),
    "found by search": ("#ff725c", "*"),
    "trained variants": ("#e63f8a", "P"),
}


def _group(study: KVStudy, point: KVPoint) -> str:
    policy = point.policy
    if point.model != study.label:
        return "trained variants"
    if study.found is not None and policy == write_policy(study.found.kv):
        return "found by search"
    select, _, form = policy.partition(", ")
    if "random" in select:
        return "random"
    if not select.startswith("window(") or "+" in select:
        return "choices of tokens"
    if select == f"window({study.block})":
        return "formats"
    return "short windows" if form == "bf16" else "both"


def _draw(figure: Figure, study: KVStudy) -> None:
    """A figure of all points; what lost is faint."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    seen: set[str] = set()
    for p, best in zip(study.points, frontier(study.points), strict=True):
        group = _group(study, p)
        colour, marker = _GROUPS[group]
        fade = 1.0 if best else 0.35
        if p.added <= _SHOWN:
            axes.plot([p.bits, p.bits], [p.low, min(p.high, _SHOWN)], color=colour, alpha=fade, linewidth=1)
        axes.plot(
            [p.bits], [min(p.added, _SHOWN)], marker=marker, color=colour, alpha=fade, linestyle="",
            markersize=9 if marker == "*" else 6, label=None if group in seen else group,
        )  # fmt: skip
        seen.add(group)
    front = sorted((p.bits, p.added) for p, best in zip(study.points, frontier(study.points), strict=True) if best)
    axes.plot(*zip(*[(b, min(a, _SHOWN)) for b, a in front], strict=True), color="#888", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.001)
    if any(p.added > _SHOWN for p in study.points):
        axes.set_ylim(top=1.4 * _SHOWN)  # whole markers at the edge
    axes.axhline(0, color="#aaa", linewidth=0.6)
    for limit in (0.01, 0.05):
        axes.axhline(limit, color="#aaa", linewidth=0.6, linestyle=":")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:,.0f}"))
    axes.yaxis.set_major_locator(FixedLocator([-0.1, -0.01, -0.001, 0, 0.001, 0.01, 0.05, 0.1, _SHOWN]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{y:+g} or more" if y == _SHOWN else f"{y:+g}" if y else "0")
    )
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel(f"bits held a token of the training context ({study.block})")
    axes.set_ylabel("added loss, nats a token")
    axes.set_title(study.label, loc="left")
    whole = study.points[0].bits * study.points[0].factor

    def turned(x: ArrayLike) -> ArrayLike:
        """Bits to times fewer, and back."""
        return whole / np.maximum(np.asarray(x), 1e-9)  # a new axis begins at 0

    above = axes.secondary_xaxis("top", functions=(turned, turned))
    above.xaxis.set_major_locator(LogLocator(base=2))
    above.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:g}x"))
    above.set_xlabel("times fewer than keys and values in 16 bits")
    for axis in (axes.xaxis, above.xaxis):
        axis.set_minor_formatter(NullFormatter())
    legend = axes.legend(frameon=False, fontsize=8, loc="upper right")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)

"""A corpus in two pictures: how often the token of each rank occurs, and how long documents are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bonsaigpt.data.looking import SplitStats
from bonsaigpt.data.shards import Corpus
from bonsaigpt.files import write_text, writing
from bonsaigpt.report.curves import INK, frame, inline, mark
from bonsaigpt.report.markup import document, figures, legend, panel, settings_table, table, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["frequent_tokens", "token_page", "token_png"]

_SIZE = (440, 300)
_PAPER_INK = "#23261f"
_PAPER = ("#2c6e4d", "#c0703a")
_BARS = 24
"""For documents of similar length."""
_MOST = 24
"""Tokens in the table."""


def token_page(corpus: Corpus, stats: Sequence[SplitStats], path: Path) -> Path:
    """A page without outside resources.

    Raises:
        OutputError: the file cannot be written.
    """
    counts = corpus.counts.get("train")
    total = sum(s.tokens for s in stats)
    size = sum(c.bytes for c in corpus.counts.values())
    left_out = f"{corpus.duplicates:,} duplicates left out" if corpus.duplicates else ""
    entries = [
        ("tokens", f"{total:,}", ", ".join(f"{s.tokens:,} {s.split}" for s in stats)),
        ("documents", f"{corpus.documents:,}", left_out),
        ("bytes a token", f"{size / total:.2f}" if counts else "unknown", f"{size:,} bytes of text" if counts else ""),
        ("vocabulary used", f"{stats[0].used / len(stats[0].frequency):.1%}", f"of {len(stats[0].frequency):,} tokens"),
    ]
    note = (
        f"Entropy of the training split's frequencies: {stats[0].entropy:.4f} nats a token, the loss of a model that "
        "knows them and nothing else."
    )
    drawings = [panel("How often a token occurs, by its rank", text(note), _svg("ranks", stats))]
    if stats[0].lengths is not None:
        note = "; ".join(
            f"{s.split}: half have at most {s.length_quantile(0.5):,} tokens, 99 % at most {s.length_quantile(0.99):,}"
            for s in stats
        )
        drawings.append(panel("Length of documents, in tokens", text(note), _svg("lengths", stats)))
    # A browser would draw several spaces as one.
    rows = [
        (name.replace(" ", "\N{NO-BREAK SPACE}"), f"{count:,}", f"{share:.2%}")
        for name, count, share in frequent_tokens(corpus, stats[0], _MOST)
    ]
    half = (len(rows) + 1) // 2
    tables = "".join(table(["token", "times", "share"], part) for part in (rows[:half], rows[half:]))
    about = [
        ("source", corpus.source, "", False),
        ("validation", corpus.split, "", False),
        ("tokenizer", f"{corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} tokens", "", False),
        ("shards", f"{len(corpus.shards):,} of {corpus.dtype}", "", False),
        ("fingerprint", corpus.fingerprint, "", False),
    ]
    body = (
        f"<h1>{text(corpus.folder.name)}</h1>{figures(entries)}"
        f'<section>{legend([s.split for s in stats])}<div class="pair">{"".join(drawings)}</div></section>'
        f'<section><h2>The most frequent tokens of the training split</h2><div class="pair">{tables}</div></section>'
        f'<section class="prose">{settings_table("What it was made from", about)}</section>'
    )
    write_text(path, document(f"{corpus.folder.name}: tokens", body))
    return path


def frequent_tokens(corpus: Corpus, stats: SplitStats, most: int) -> list[tuple[str, int, float]]:
    """Spelling, number and share of the most frequent tokens."""
    order = np.argsort(-stats.frequency, kind="stable")[:most].tolist()
    found = [(index, int(stats.frequency[index])) for index in order if stats.frequency[index]]
    return [(_spelling(corpus, index), count, count / stats.tokens) for index, count in found]


def _spelling(corpus: Corpus, index: int) -> str:
    if index == corpus.tokenizer.end_of_text:
        return "end of text"
    return repr(corpus.tokenizer.decode([index]))


def token_png(corpus: Corpus, stats: Sequence[SplitStats], path: Path) -> Path:
    """The same pictures as a file for elsewhere.

    Raises:
        OutputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    draws = [_ranks] if stats[0].lengths is None else [_ranks, _lengths]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 10})
        figure = Figure(figsize=(5.4 * len(draws), 4.3))
        for number, draw in enumerate(draws):
            axes = figure.add_subplot(1, len(draws), number + 1)
            draw(axes, stats, _PAPER_INK, _PAPER)
        for split, colour, x in zip((s.split for s in stats), _PAPER, (0.03, 0.09), strict=False):
            figure.text(x, 0.025, split, color=colour, fontsize=10)
        figure.suptitle(corpus.folder.name, x=0.03, ha="left", color=_PAPER_INK, fontsize=13)
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        with writing(path):
            figure.savefig(path, format="png", dpi=150, metadata={"Software": None})
    return path


def _svg(name: Literal["ranks", "lengths"], stats: Sequence[SplitStats]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    width, height = _SIZE
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 11})
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((52 / width, 44 / height, 1 - 66 / width, 1 - 56 / height))
        draw = _ranks if name == "ranks" else _lengths
        draw(axes, stats, INK, (mark(0), mark(1)))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), {"ranks": "Frequency by rank", "lengths": "Lengths of documents"}[name])


def _ranks(axes: Axes, stats: Sequence[SplitStats], ink: str, colours: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    frame(axes, ink=ink)
    for split, colour in zip(stats, colours, strict=False):
        share = np.sort(split.frequency[split.frequency > 0])[::-1] / split.tokens
        ranks = np.arange(1, len(share) + 1)
        # As many points as can be told apart on a logarithmic axis.
        at = np.unique(np.geomspace(1, len(share), 300).round().astype(np.int64)) - 1
        axes.plot(ranks[at], share[at], color=colour, linewidth=1.8)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=8))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank of the token", loc="right", color=ink, labelpad=7)
    axes.set_ylabel("share of all tokens", loc="top", color=ink, labelpad=7)


def _lengths(axes: Axes, stats: Sequence[SplitStats], ink: str, colours: Sequence[str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

    frame(axes, ink=ink)
    counts = [split.lengths for split in stats if split.lengths is not None]
    there = np.maximum(np.flatnonzero(sum(counts)), 1)
    edges, is_wide = length_edges(int(there[0]), int(there[-1]))
    for number, (lengths, colour) in enumerate(zip(counts, colours, strict=False)):
        weights, _ = np.histogram(np.maximum(np.arange(len(lengths)), 1), bins=edges, weights=lengths)
        share = weights / weights.sum()
        if number == 0:  # the first as a surface, so that another's outline shows on it
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.0 if number == 0 else 1.8)
    if is_wide:
        axes.set_xscale("log", base=10)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(length_ticks(edges[0], edges[-1], is_wide)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in a document", loc="right", color=ink, labelpad=7)
    axes.set_ylabel("share of documents", loc="top", color=ink, labelpad=7)


def length_edges(lowest: int, highest: int) -> tuple[np.ndarray, bool]:
    """Edges of bars over lengths from ``lowest`` to ``highest``, between whole numbers; and whether they grow by a
    factor, a quarter octave, because the range is that wide. Else bars are equally wide, about ``_BARS`` of them."""
    is_wide = highest >= 8 * lowest
    if is_wide:
        count = int(np.ceil(4 * np.log2((highest + 1) / lowest)))
        edges = np.ceil(lowest * 2 ** (np.arange(count + 1) / 4)) - 0.5
    else:
        width = max(1, -(-(highest - lowest + 1) // _BARS))
        edges = np.arange(lowest, highest + width + 1, width) - 0.5
    return np.unique(edges), is_wide


def length_ticks(low: float, high: float, is_wide: bool) -> list[float]:
    """Three to eight round numbers between ``low`` and ``high``, or as many whole ones as there are."""
    steps = ((1,), (1, 3), (1, 2, 5)) if is_wide else ()
    for digits in steps:
        found = [d * 10.0**power for power in range(7) for d in digits if low <= d * 10.0**power <= high]
        if len(found) >= 3:
            return found
    for step in (d * 10**power for power in range(6, -1, -1) for d in (5, 2, 1)):
        found = [float(x) for x in range(int(np.ceil(low / step)) * step, int(high) + 1, step)]
        if len(found) >= 3:
            return found
    return [float(x) for x in range(int(np.ceil(low)), int(high) + 1)]

"""A task's page: how good, where it goes wrong, and every answer, the worst first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bonsaigpt.files import writing
from bonsaigpt.measure.tasks import Answer, TaskResult, class_scores
from bonsaigpt.report.markup import document, figures, table, text
from bonsaigpt.study.drawing import save_drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confusion", "write_task"]

_DRAWN = 30
"""Labels of the picture at most: those that are confused most."""
_SHOWN = 500
"""Answers on the page at most; all are in answers.jsonl."""


def write_task(result: TaskResult, folder: Path, *, label: str, data: Path, command: str) -> Path:
    """``report.html``, ``answers.jsonl`` and, where there are labels, ``confusion.png``; the page's path.

    Raises:
        OutputError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in result.worst_first)
        (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    parts = [_head(result, label, data), _confused(result, folder), _classes(result), _answers(result), _made(command)]
    path = folder / "report.html"
    with writing(path):
        path.write_text(document(f"{data.name} · BonsaiGPT", "\n".join(filter(None, parts))), encoding="utf-8")
    return path


def confusion(answers: Sequence[Answer], most: int) -> tuple[list[str], np.ndarray]:
    """The labels that are confused most, in alphabetical order, and how often each (row) was taken for each (column);
    at last, if there are more labels than ``most``, all others together."""
    wrong: Counter[str] = Counter()
    for answer in answers:
        if answer.prediction != answer.reference:
            wrong.update((answer.reference, answer.prediction))
    known = sorted({answer.reference for answer in answers} | {answer.prediction for answer in answers})
    kept = known if len(known) <= most else sorted(name for name, _ in wrong.most_common(most))
    names = kept if len(kept) == len(known) else [*kept, "all others"]
    place = {name: number for number, name in enumerate(kept)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for answer in answers:
        counts[place.get(answer.reference, -1), place.get(answer.prediction, -1)] += 1
    return names, counts


def _head(result: TaskResult, label: str, data: Path) -> str:
    error = f"± {result.standard_error:.2%} standard error" if result.standard_error is not None else ""
    entries = [
        (result.metric, f"{result.mean:.2%}", error),
        ("examples", f"{len(result.answers):,}", f"{sum(a.score == 0 for a in result.answers):,} of them scored 0"),
    ]
    if result.labels:
        ranks = [a.reference_rank for a in result.answers if a.reference_rank is not None]
        near = sum(rank <= 3 for rank in ranks) / max(1, len(ranks))
        macro = float(np.mean([score.f1 for score in class_scores(result.answers)]))
        entries += [
            ("labels", f"{len(result.labels):,}", "between which was chosen"),
            ("among the first three", f"{near:.2%}", "of the answers that are labels"),
            ("macro F1", f"{macro:.2%}", "mean over the labels"),
        ]
    return (
        f'<header><h1>{text(data.name)}</h1><p class="about">{text(label)}</p></header>'
        f"<section>{figures(entries)}</section>"
    )


def _confused(result: TaskResult, folder: Path) -> str:
    if not result.labels:
        return ""
    names, counts = confusion(result.answers, _DRAWN)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("the model's answer")
        axes.set_ylabel("what it should be")
        if len(names) <= _DRAWN + 1:  # those, and all others
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.6 else "#23261f"
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=6, color=colour)
        figure.colorbar(image, label="share of the row", fraction=0.04)

    side = 3.0 + 0.24 * len(names)
    drawing = save_drawing(draw, folder / "confusion.png", size=(side + 0.6, side))
    less = "" if "all others" not in names else f" The {len(names) - 1} labels that are confused most, and all others."
    pairs = Counter((a.reference, a.prediction) for a in result.answers if a.prediction != a.reference)
    rows = [[wanted, given, str(count)] for (wanted, given), count in pairs.most_common(15)]
    worst = table(["it was", "taken for", "times"], rows) if rows else ""
    return f'<section><h2>Confusion</h2>{drawing}<p class="note">Counts.{less}</p>{worst}</section>'


def _classes(result: TaskResult) -> str:
    if not result.labels:
        return ""
    scores = sorted(class_scores(result.answers), key=lambda s: s.f1)
    rows = [[s.label, f"{s.examples:,}", f"{s.recall:.1%}", f"{s.precision:.1%}", f"{s.f1:.1%}"] for s in scores]
    head = ["label", "examples", "recall", "precision", "F1"]
    return f"<section><h2>Labels, the worst first</h2>{table(head, rows)}</section>"


def _answers(result: TaskResult) -> str:
    shown = result.worst_first[:_SHOWN]
    chosen = bool(result.labels)
    head = ["prompt", "should be", "the model's answer", "score", "confidence", *(["rank"] if chosen else [])]
    rows = [
        [
            answer.prompt,
            answer.reference,
            answer.prediction,
            f"{answer.score:.2f}",
            f"{answer.confidence:.1%}",
            *(["–" if answer.reference_rank is None else str(answer.reference_rank)] if chosen else []),
        ]
        for answer in shown
    ]
    rank = " Rank: of the right label among all." if chosen else ""
    left = f" The first {_SHOWN} of {len(result.answers):,}; all are in answers.jsonl." * (
        len(shown) < len(result.answers)
    )
    note = f'<p class="note">The lowest score first, and of equal ones the most confident.{rank}{left}</p>'
    return f"<section><h2>Answers, the worst first</h2>{table(head, rows)}{note}</section>"


def _made(command: str) -> str:
    return f"<section><h2>Reproduce</h2><pre>{text(command)}</pre></section>"

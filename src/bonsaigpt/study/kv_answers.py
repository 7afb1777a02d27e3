"""The study of the cache where the past matters: a task with answers, read through many policies.

Text flatters whatever forgets. Here held-out problems are read token by token through each policy, and one counts as
solved if its whole answer is the model's first choice; paired with the same problems through everything exact.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.data.batches import IGNORE, BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.files import write_text
from bonsaigpt.kv import write_policy
from bonsaigpt.measure.kv_answers import KVAnswers, score_answers
from bonsaigpt.measure.statistics import unbeaten
from bonsaigpt.report.markup import document, panel, table, text
from bonsaigpt.study.drawing import save_drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KVAnswersStudy", "answers_table", "chance", "study_answers", "write_answers"]

_KEPT = 0.01
"""Share of the problems that may be lost, the interval included, for a policy to count as without loss."""


@dataclass(frozen=True, kw_only=True)
class KVAnswersStudy:
    """All that was found about one model."""

    label: str
    chance: float
    """Share of the answer tokens that are right if always the most frequent one is said."""
    policies: Sequence[str]
    answers: Sequence[KVAnswers]

    @property
    def verdict(self) -> str:
        """What to conclude, in sentences."""
        pairs = list(zip(self.policies, self.answers, strict=True))
        problems = self.answers[0].problems
        words = [f"{problems:,} problems; of single answer tokens {self.chance:.1%} are right by chance."]
        kept = [(a.factor, policy) for policy, a in pairs if a.margin is not None and a.exact_lost + a.margin <= _KEPT]
        if kept:
            factor, policy = max(kept)
            words.append(
                f"At most {_KEPT:.0%} of the problems lost, the interval included: {factor:.1f} times fewer bits, "
                f"with {policy}."
            )
        return " ".join(words)


def chance(source: BatchSource) -> float:
    """Share of the most frequent token among those that are asked for."""
    targets = np.concatenate([batch.targets_BT[batch.targets_BT != IGNORE] for batch in source.validation()])
    return float(np.bincount(targets).max() / len(targets))


def study_answers(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    source: BatchSource,
    policies: Sequence[KVConfig],
    *,
    label: str,
    advance: Callable[[str, int, int], None] | None = None,
) -> KVAnswersStudy:
    """Read the problems of a task through each policy, token by token."""
    policies = [kv.model_copy(update={"chunk": 1}) for kv in policies]
    return KVAnswersStudy(
        label=label,
        chance=chance(source),
        policies=[write_policy(kv) for kv in policies],
        answers=score_answers(engine, model, config, policies, source, advance=advance),
    )


def answers_table(study: KVAnswersStudy) -> tuple[list[str], list[list[str]]]:
    """Header and rows, by bits; a star marks what no other policy beats."""
    header = ["policy", "bits", "times fewer", "solved", "lost, points", "tokens right", ""]
    rows = [
        (
            -a.bits,
            [
                policy,
                f"{a.bits:,.0f}",
                f"{a.factor:.2f}",
                f"{a.exact:.2%}",
                a.points_lost,
                f"{a.right:.2%}",
                "*" if best else "",
            ],
        )
        for policy, a, best in zip(study.policies, study.answers, _front(study), strict=True)
    ]
    return header, [row for _, row in sorted(rows)]


def _front(study: KVAnswersStudy) -> list[bool]:
    return unbeaten([(a.bits, -a.exact) for a in study.answers])


def write_answers(study: KVAnswersStudy, folder: Path) -> list[Path]:
    """Write the page, the plot and the table, and return their paths."""
    page, image, figures = (folder / f"kv.{ending}" for ending in ("html", "png", "csv"))
    write_text(figures, _csv(study))
    inline = save_drawing(lambda figure: _draw(figure, study), image, size=(9.5, 5.0))
    note = (
        "Held-out problems, read token by token through each policy; solved are those whose whole answer is the first "
        "choice. Bits are those held while the last token was read, that one at 16 bits a number. Lost: solved through "
        "everything exact and not through the policy, less those the other way round. A star or a full dot: no other "
        "policy has fewer bits and solves as many."
    )
    parts = [
        f'<header><h1>{text(study.label)}: the cache</h1><p class="about">{text(study.verdict)}</p></header>',
        f"<section><h2>Bits against answers</h2>{panel('All policies', '', inline)}"
        f'<p class="note">{text(note)}</p></section>',
        f"<section><h2>Policies</h2>{table(*answers_table(study))}</section>",
        "<section><h2>Commands</h2><pre>" + text("\n".join(_commands(study))) + "</pre></section>",
    ]
    write_text(page, document(f"{study.label}: the cache · BonsaiGPT", "\n".join(parts)))
    return [page, image, figures]


def _commands(study: KVAnswersStudy) -> list[str]:
    run = shlex.quote(study.label.partition("@")[0])
    return [f"bonsai eval {run} --kv {shlex.quote(policy)}" for policy in study.policies]


def _csv(study: KVAnswersStudy) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = "bits,times_fewer,solved,lost,margin,right,chance"
    writer.writerow(["policy", *figures.split(","), "frontier", "command"])
    for policy, a, best, command in zip(study.policies, study.answers, _front(study), _commands(study), strict=True):
        row = [a.bits, a.factor, a.exact, a.exact_lost, a.margin, a.right, study.chance]
        writer.writerow([policy, *("" if f is None else f"{f:.6g}" for f in row), int(best), command])
    return out.getvalue()


def _draw(figure: Figure, study: KVAnswersStudy) -> None:
    axes = figure.subplots()
    for a, best in zip(study.answers, _front(study), strict=True):
        axes.plot([a.factor], [a.right], marker="o", color="#4269d0", alpha=1.0 if best else 0.3, linestyle="")
    axes.axhline(study.chance, color="#9c6b4e", linewidth=0.8, linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    ticks = [f for f in (0.5, 1, 2, 4, 8, 16, 32) if f <= 1.5 * max(a.factor for a in study.answers)]
    axes.set_xticks(ticks, [f"{f:g}x" for f in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times fewer bits than keys and values in 16 bits")
    axes.set_ylabel("answer tokens that are right")
    axes.set_title(study.label, loc="left")
    axes.legend(frameon=False, loc="lower left")

"""Which learning rate? Short trainings at multiples of the recipe's rate, and a parabola through the best three.

Every training has the recipe's own schedule, shrunk to a number of steps: warmup and ramps keep their share of it, and
the rate comes down at the end as it would. All rates (AdamW's, and Muon's if the matrices have it) move together, by
one multiple. Where the best is at an edge of what was tried, the study goes on beyond it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bonsaigpt.config import LinearRamp, MuonMatrices, NoRamp, Ramp, RunConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.files import write_text, writing
from bonsaigpt.measure.statistics import Estimate
from bonsaigpt.study.plan import Point
from bonsaigpt.study.results import Summary, difference, verdict
from bonsaigpt.study.sweep import Sweep

__all__ = ["LrStudy", "Suggestion", "analyse", "bottom", "earlier", "lr_points", "multiple_of", "rates", "write_json"]

MOST_ADDED = 6
"""Multiples that the study adds by itself, beyond an edge or between the best and its neighbours."""
NARROW = 3.0
"""The factor between the neighbours of the best below which no more is added. The usual grid has 4, too wide for a
parabola: too high a rate costs far more than too low a one, and so lopsided a valley has its bottom elsewhere."""


def rates(config: RunConfig, multiple: float) -> dict[str, float]:
    """All peak learning rates times ``multiple``, by the names of their settings."""
    optim = config.optim
    found = {"optim.lr": optim.lr}
    if isinstance(optim.matrices, MuonMatrices):
        found["optim.matrices.lr"] = optim.matrices.lr
    return {name: float(f"{multiple * rate:.6g}") for name, rate in found.items()}


def lr_points(base: RunConfig, multiples: Sequence[float], *, steps: int) -> list[Point]:
    """A point for each multiple, the recipe's own rate first if it is among them: the others are held against it.

    Raises:
        ConfigError: a step count that shrinks nothing.
    """
    if steps > base.train.steps:
        raise ConfigError(
            f"--steps {steps} is more than the recipe's own {base.train.steps}: use fewer, or give --train.steps as "
            "well, the length of the training that the rate is for"
        )
    share = steps / base.train.steps
    shrunk: dict[str, Any] = {
        "train.steps": steps,
        "train.eval_interval": steps,  # the last loss is what counts, and a small model is evaluated as long as trained
        "train.guard.rollbacks": 0,  # a rate at which a short training diverges once is too large
        "optim.schedule.kind": base.optim.schedule.kind,
        "optim.schedule.warmup": round(share * base.optim.schedule.warmup),
        "optim.matrices.kind": base.optim.matrices.kind,
        **_shrunk_ramp("train.batch_ramp", base.train.batch_ramp, share),
        **_shrunk_ramp("train.context_ramp", base.train.context_ramp, share),
    }
    points = [
        Point(f"x{multiple:g}", {name: str(value) for name, value in (shrunk | rates(base, multiple)).items()})
        for multiple in sorted(set(multiples))
    ]
    return sorted(points, key=lambda point: point.name != "x1")


def _shrunk_ramp(name: str, ramp: Ramp, share: float) -> dict[str, Any]:
    if isinstance(ramp, NoRamp):
        return {}
    if isinstance(ramp, LinearRamp):
        return {f"{name}.kind": ramp.kind, f"{name}.steps": max(1, round(share * ramp.steps))}
    until: list[int] = []
    for end in ramp.until:
        until.append(max(until[-1] + 1 if until else 1, round(share * end)))
    return {f"{name}.kind": ramp.kind, f"{name}.sizes": list(ramp.sizes), f"{name}.until": until}


def earlier(folder: Path) -> list[float]:
    """The multiples that an earlier call has tried in this folder: those that it added by itself are in no command."""
    try:
        record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        return [multiple_of(point["name"]) for point in record["points"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # nothing yet, or something else, which is refused when it is opened


def multiple_of(name: str) -> float:
    """Of a point."""
    return float(name.removeprefix("x"))


# ------------------------------------------------------------------ what came of it


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The rate to use."""

    multiple: float
    through: tuple[float, ...]
    """The three multiples of the parabola; one alone where the best is at an edge."""
    by_seed: tuple[float, ...]
    """The same, found for each seed alone."""
    rates: dict[str, float]
    """By the names of the settings, two digits: more are not known."""

    @property
    def flags(self) -> str:
        """What to type."""
        return " ".join(f"--{name} {rate:g}" for name, rate in self.rates.items())


@dataclass(frozen=True, kw_only=True)
class LrStudy:
    """All multiples, lowest first, and what they say."""

    summaries: Sequence[Summary]
    suggestion: Suggestion | None
    """None as long as no training has finished."""
    more: tuple[float, ...]
    """Multiples to be tried next."""
    why: str
    """They should be."""
    steps: int
    verdict: str


def analyse(summaries: Sequence[Summary], base: RunConfig, *, given: Sequence[float], steps: int) -> LrStudy:
    """Figures, verdict, and what to try next.

    Args:
        given: the multiples that the user asked for; all others were added.
    """
    summaries = sorted(summaries, key=lambda s: multiple_of(s.point.name))
    usable = [s for s in summaries if s.final is not None and not s.failures]  # one seed that diverges is enough
    if not usable:
        said = verdict(summaries)
        return LrStudy(summaries=summaries, suggestion=None, more=(), why="", steps=steps, verdict=said)
    losses = {multiple_of(s.point.name): s.final.mean for s in usable if s.final is not None}
    at, through = bottom(losses)
    seeds = sorted(set.intersection(*(set(s.results) for s in usable)))
    suggestion = Suggestion(
        multiple=at,
        through=through,
        by_seed=tuple(bottom({multiple_of(s.point.name): s.results[seed].final for s in usable})[0] for seed in seeds),
        rates={name: float(f"{rate:.2g}") for name, rate in rates(base, at).items()},
    )
    tried = [multiple_of(s.point.name) for s in summaries]
    more, why = _next(tried, losses)
    is_whole = all(s.results or s.failures for s in summaries)
    if not is_whole or len(set(tried) - set(given)) + len(more) > MOST_ADDED:
        more = ()
    edge = "" if len(through) == 3 else _edge(tried, through[0], is_last=is_whole and not more)
    words = [verdict(usable), _against_own(usable), _said(suggestion, edge), _for(base, steps)]
    return LrStudy(
        summaries=summaries,
        suggestion=suggestion,
        more=more,
        why=why,
        steps=steps,
        verdict=" ".join(filter(None, [*words, f"Use {suggestion.flags}"])),
    )


def bottom(losses: dict[float, float]) -> tuple[float, tuple[float, ...]]:
    """The multiple at the bottom of the parabola, in the logarithm of the rate, through the best and its neighbours;
    and these three. At an edge it is the best itself: a parabola would guess beyond what was tried."""
    multiples = sorted(losses)
    i = min(range(len(multiples)), key=lambda j: losses[multiples[j]])
    if i in (0, len(multiples) - 1):
        return multiples[i], (multiples[i],)
    through = (multiples[i - 1], multiples[i], multiples[i + 1])
    left, middle, right = map(math.log, through)
    rise_left, rise_right = (losses[m] - losses[multiples[i]] for m in (through[0], through[2]))
    a, b = (middle - left) * rise_right, (right - middle) * rise_left
    if a + b == 0.0:  # all three are equal
        return multiples[i], through
    at = middle + 0.5 * ((right - middle) * b - (middle - left) * a) / (a + b)
    return math.exp(at), through


def _next(tried: Sequence[float], losses: dict[float, float]) -> tuple[tuple[float, ...], str]:
    """What to try next, and why: where the best is at an edge, a multiple as far beyond as its neighbour is before it;
    else, as long as its neighbours are far apart, halfway to both."""
    best, usable = min(losses, key=lambda m: losses[m]), sorted(losses)
    if best in (tried[0], tried[-1]):
        neighbour = tried[1] if best == tried[0] else tried[-2]
        return (float(f"{best * best / neighbour:.6g}"),), "the lowest loss is at the edge of what was tried"
    if best in (usable[0], usable[-1]):
        return (), ""
    i = usable.index(best)
    left, right = usable[i - 1], usable[i + 1]
    if right / left < NARROW:
        return (), ""
    halfway = tuple(float(f"{math.sqrt(best * m):.2g}") for m in (left, right))
    return halfway, f"x{best:g} is the best, and its neighbours are far"


def _edge(tried: Sequence[float], best: float, *, is_last: bool) -> str:
    """What there is to say where the best has no neighbour on one side."""
    if best not in (tried[0], tried[-1]):
        return "Beyond it a training failed, so it is the edge of what can be used: a smaller one is safer."
    if is_last:
        return "It is at the edge of all that was tried, so the best may lie further: start from this rate anew."
    return "It is at the edge of what has been tried so far."


def _said(found: Suggestion, edge: str) -> str:
    if edge:
        return edge
    three = ", ".join(f"x{m:g}" for m in found.through[:2]) + f" and x{found.through[2]:g}"
    spread = ""
    if len(found.by_seed) > 1:
        spread = f" (seed by seed x{min(found.by_seed):.2g} to x{max(found.by_seed):.2g})"
    return f"The parabola through {three} is lowest at x{found.multiple:.2g}{spread}."


def _against_own(usable: Sequence[Summary]) -> str:
    """A warning where the best may be no better than what the recipe has already; the next best has been judged."""
    ranked = sorted(usable, key=lambda s: s.final.mean if s.final is not None else math.inf)
    own = next((s for s in ranked[2:] if s.point.name == "x1"), None)
    gap = difference(ranked[0].results, own.results) if own is not None else None
    if gap is None or gap.p is None or gap.is_significant:
        return ""
    return f"The recipe's own rate, x1, cannot be told from it ({gap.text('+.4f')} nats)."


def _for(base: RunConfig, steps: int) -> str:
    if steps == base.train.steps:
        return ""
    return f"This is for {steps:,} steps; the {base.train.steps:,} of the recipe may want another rate."


def write_json(study: LrStudy, base: RunConfig, sweep: Sweep) -> Path:
    """Write SWEEP/studies/lr.json and return its path."""
    found = study.suggestion
    record: dict[str, Any] = {
        "study": "lr",
        "recipe": sweep.plan.recipe,
        "command": sweep.plan.command,
        "verdict": study.verdict,
        "steps": study.steps,
        "recipe_rates": rates(base, 1.0),
        "suggestion": None
        if found is None
        else {"multiple": found.multiple, "rates": found.rates, "through": found.through, "by_seed": found.by_seed},
        "multiples": [
            {
                "multiple": multiple_of(s.point.name),
                "rates": rates(base, multiple_of(s.point.name)),
                "final_loss": _numbers(s.final),
                "losses_by_seed": {str(seed): result.final for seed, result in s.results.items()},
                "failures_by_seed": {str(seed): reason for seed, reason in s.failures.items()},
            }
            for s in study.summaries
        ],
    }
    file = sweep.folder / "studies" / "lr.json"
    with writing(file):
        file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return file


def _numbers(found: Estimate | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    return {"mean": found.mean, "standard_error": found.standard_error, "margin_95": found.margin, "n": found.n}

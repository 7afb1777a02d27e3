"""Many short sequences or few long ones? Pairs of batch and block size with equal tokens in a step, held to one budget.

Every pair sees the same number of training tokens and is scored on the same targets with the same length of context,
so the losses can be compared: scored at their own block sizes, longer blocks would win by seeing more of the text.
What that context is worth is a figure of its own, taken after training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import NoRamp, RunConfig, TaskData, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import ConfigError
from bonsaigpt.files import write_text, writing
from bonsaigpt.measure import evaluate
from bonsaigpt.measure.statistics import Estimate, estimate
from bonsaigpt.study.plan import Point
from bonsaigpt.study.results import Result, Summary, verdict
from bonsaigpt.study.sweep import Sweep
from bonsaigpt.units import named

__all__ = ["VARIED", "BatchStudy", "Outcome", "Pair", "analyse", "batch_points", "own_losses", "pairs", "write_json"]

VARIED = ("train.batch_size", "model.block_size", "train.eval_block_size")
"""The settings that the study itself chooses."""


@dataclass(frozen=True)
class Pair:
    """Sequences in a step, and tokens in each."""

    batch: int
    block: int

    @property
    def name(self) -> str:
        """``24x32``."""
        return f"{self.batch}x{self.block}"

    @property
    def tokens(self) -> int:
        """Targets of one step."""
        return self.batch * self.block


def pairs(tokens_per_step: Sequence[int], blocks: Sequence[int]) -> list[Pair]:
    """Every pair of these blocks that makes one of these numbers of tokens, short blocks first.

    Raises:
        ConfigError: fewer than two pairs.
    """
    found = [Pair(n // block, block) for n in tokens_per_step for block in sorted(set(blocks)) if n % block == 0]
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        raise ConfigError(
            f"blocks of {_list(blocks)} tokens give {named(len(found), 'way')} to make a step of "
            f"{_list(tokens_per_step)}: choose blocks that divide it"
        )
    return found


def batch_points(base: RunConfig, found: Sequence[Pair], *, budget: int | None, context: int | None) -> list[Point]:
    """A point for each pair; schedule and evaluations come at the same numbers of tokens as in ``base``.

    Args:
        budget: training tokens of every run; None means those of ``base``.
        context: length of context at every evaluation; None means the shortest block.

    Raises:
        ConfigError: a context longer than a block, a budget below one step, ramps, or data that has no blocks.
    """
    shortest = min(pair.block for pair in found)
    context = context or shortest
    if isinstance(base.data, TaskData):
        raise ConfigError("a toy's row has one length, so nothing can be cut: take a recipe with text, or zero-one")
    if not (isinstance(base.train.batch_ramp, NoRamp) and isinstance(base.train.context_ramp, NoRamp)):
        raise ConfigError(
            "a ramp changes batch or block on the way, and this study compares fixed ones: give "
            "--train.batch_ramp.kind none --train.context_ramp.kind none"
        )
    if context > shortest:
        raise ConfigError(
            f"--eval-block {context} is longer than the shortest block, {shortest}, whose models know no such "
            "positions: use that or less"
        )
    usual = base.train.batch_size * base.model.block_size
    budget = budget or usual * base.train.steps
    if budget < max(pair.tokens for pair in found):
        raise ConfigError(f"--budget {budget} is not even one step of {max(pair.tokens for pair in found)} tokens")
    points: list[Point] = []
    for pair in found:
        steps = round(budget / pair.tokens)
        share = usual / pair.tokens
        settings = {
            "train.batch_size": pair.batch,
            "model.block_size": pair.block,
            "train.eval_block_size": context,
            "train.steps": steps,
            "train.eval_interval": min(steps, max(1, round(base.train.eval_interval * share))),
            "optim.schedule.kind": base.optim.schedule.kind,
            "optim.schedule.warmup": round(base.optim.schedule.warmup * share),
        }
        points.append(Point(pair.name, {name: str(value) for name, value in settings.items()}))
    return points


# ------------------------------------------------------------------ what came of it


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One pair over its seeds."""

    pair: Pair
    summary: Summary
    own: Estimate | None
    """Loss of the last weights with the pair's own block as context, nats a token."""
    reached: int
    """Seeds that came down to the target."""
    steps_to_target: Estimate | None
    """Over all finished seeds; None if one of them did not reach it."""
    seconds_to_target: Estimate | None
    memory_mb: Estimate | None
    """Peak of the training process, 2^20 bytes."""


@dataclass(frozen=True, kw_only=True)
class BatchStudy:
    """All pairs, and what they say."""

    outcomes: Sequence[Outcome]
    context: int
    """Tokens of context at which all were scored."""
    target: float | None
    """The loss that time and steps are counted to; None as long as no run has finished."""
    verdict: str


def own_losses(
    sweep: Sweep, found: Mapping[str, Result], corpora: Path, *, advance: Callable[[str, int, int], None]
) -> dict[str, float]:
    """The loss of each finished run's last weights at its own block size; what an earlier call found is kept."""
    file = _file(sweep)
    try:
        known: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["own_losses"]
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    losses: dict[str, float] = {}
    for done, planned in enumerate(run for run in sweep.plan.runs if run.name in found):
        advance("scoring at own context", done, len(found))
        config = RunDirectory.open(sweep.run(planned)).config
        if config.train.eval_block_size == config.model.block_size:
            losses[planned.name] = found[planned.name].final
        elif planned.name in known:
            losses[planned.name] = known[planned.name]
        else:
            losses[planned.name] = _own_loss(RunDirectory(sweep.run(planned)), config, corpora)
    return losses


def _own_loss(run: RunDirectory, config: RunConfig, corpora: Path) -> float:
    train = config.train
    engine = load_engine("torch", device=train.device, precision=train.precision, threads=train.threads)
    source = open_source(derive(config, train={"eval_block_size": None}), corpora)
    model = engine.model(config.model, run.load("last", optimizer=False).model)
    return evaluate(engine, model, source).loss


def analyse(
    summaries: Sequence[Summary], own: Mapping[str, float], sweep: Sweep, *, target: float | None
) -> BatchStudy:
    """Figures and verdict.

    Args:
        own: by the name of the run, see ``own_losses``.
        target: the loss to count to; None means that of the median pair, as its worst seed ended.
    """
    finished = [s for s in summaries if s.final is not None]
    if target is None and finished:
        by_loss = sorted(finished, key=lambda s: s.final.mean if s.final else 0.0)
        target = max(r.final for r in by_loss[len(by_loss) // 2].results.values())
    of_point = {s.point.name: [run for run in sweep.plan.runs if run.point == s.point.name] for s in summaries}
    outcomes: list[Outcome] = []
    for s in summaries:
        results = list(s.results.values())
        crossings = [c for r in results if target is not None and (c := _crossing(r, target)) is not None]
        all_reached = bool(results) and len(crossings) == len(results)
        memory = [r.memory_mb for r in results if r.memory_mb is not None]
        scored = [own[run.name] for run in of_point[s.point.name] if run.name in own]
        outcomes.append(
            Outcome(
                pair=Pair(int(s.point.settings["train.batch_size"]), int(s.point.settings["model.block_size"])),
                summary=s,
                own=estimate(scored) if scored else None,
                reached=len(crossings),
                steps_to_target=estimate([steps for steps, _ in crossings]) if all_reached else None,
                seconds_to_target=estimate([seconds for _, seconds in crossings]) if all_reached else None,
                memory_mb=estimate(memory) if memory else None,
            )
        )
    context = int(summaries[0].point.settings["train.eval_block_size"])
    return BatchStudy(outcomes=outcomes, context=context, target=target, verdict=_verdict(outcomes, context, target))


def _crossing(result: Result, target: float) -> tuple[float, float] | None:
    """Steps and seconds at which the validation loss first was at the target, on straight lines between evaluations;
    None if it never was."""
    points = [(r["step"], r["seconds"], r["val_loss"]) for r in result.history.evaluations if r["step"] < result.steps]
    points.append((result.steps, result.seconds, result.final))  # the last line is rounded, or a kill came before it
    before = points[0]
    for step, seconds, loss in points:
        if loss <= target:
            share = 1.0 if before[2] <= loss else (before[2] - target) / (before[2] - loss)
            return before[0] + share * (step - before[0]), before[1] + share * (seconds - before[1])
        before = step, seconds, loss
    return None


def _verdict(outcomes: Sequence[Outcome], context: int, target: float | None) -> str:
    said = [f"All scored at {context} tokens of context. {verdict([o.summary for o in outcomes])}"]
    with_own = sorted((o for o in outcomes if o.own is not None), key=lambda o: o.own.mean if o.own else 0.0)
    if len(with_own) > 1:
        best, second = with_own[:2]
        assert best.own is not None
        said.append(f"With the context each was trained on, {best.pair.name} is lowest, {best.own.text()} nats")
        said[-1] += f" ({second.pair.name} is next, {second.own.text() if second.own else ''})."
    timed = [o for o in outcomes if o.seconds_to_target is not None]
    if timed and target is not None:
        first = min(timed, key=lambda o: o.seconds_to_target.mean if o.seconds_to_target else 0.0)
        assert first.seconds_to_target is not None
        seconds = first.seconds_to_target.text(",.1f")
        said.append(f"{first.pair.name} is the first at {target:.4f}, in {seconds} seconds.")
    return " ".join(said)


def write_json(study: BatchStudy, own: Mapping[str, float], sweep: Sweep) -> Path:
    """Write SWEEP/studies/batch.json and return its path."""
    record: dict[str, Any] = {
        "study": "batch",
        "recipe": sweep.plan.recipe,
        "command": sweep.plan.command,
        "verdict": study.verdict,
        "evaluated_at_context": study.context,
        "target_loss": study.target,
        "pairs": [
            {
                "batch_size": o.pair.batch,
                "block_size": o.pair.block,
                "tokens_per_step": o.pair.tokens,
                "steps": int(o.summary.point.settings["train.steps"]),
                "seeds_finished": len(o.summary.results),
                "seeds_failed": len(o.summary.failures),
                "seeds_that_reached_target": o.reached,
                "final_loss": _numbers(o.summary.final),
                "own_context_loss": _numbers(o.own),
                "steps_to_target": _numbers(o.steps_to_target),
                "seconds_to_target": _numbers(o.seconds_to_target),
                "training_seconds": _numbers(o.summary.seconds),
                "peak_memory_mb": _numbers(o.memory_mb),
            }
            for o in study.outcomes
        ],
        "own_losses": dict(own),
    }
    file = _file(sweep)
    with writing(file):
        file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return file


def _file(sweep: Sweep) -> Path:
    return sweep.folder / "studies" / "batch.json"


def _numbers(found: Estimate | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    return {"mean": found.mean, "standard_error": found.standard_error, "margin_95": found.margin, "n": found.n}


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

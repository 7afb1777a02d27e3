"""Finished runs without training: a sweep's folder whose runs have the losses that a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.study.plan import Point, make_plan
from bonsaigpt.study.sweep import Status, Sweep

__all__ = ["configure", "finish", "made_sweep"]


def configure(more: Mapping[str, str]) -> RunConfig:
    """A small configuration with some settings on top."""
    data: dict[str, Any] = {
        "seed": 1,
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 8, "vocab_size": 3},
        "train": {"steps": 100, "batch_size": 6, "eval_interval": 50},
    }
    for name, value in more.items():
        *sections, last = name.split(".")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return validate(data, origin="the test")


def made_sweep(folder: Path, points: Sequence[Point], *, seeds: int) -> Sweep:
    """A sweep whose runs have not begun."""
    plan = make_plan(points, recipe="recipe", command="bonsai sweep recipe", seeds=seeds, configure=configure)
    with ExitStack() as open_until_then:
        return open_until_then.enter_context(Sweep.open(folder, plan))


def finish(sweep: Sweep, name: str, losses: Sequence[float], *, seconds: float = 10.0, memory: float = 300.0) -> None:
    """Let a run have ended with these evaluations, evenly spread; the last one is in the checkpoint in full."""
    [planned] = [run for run in sweep.plan.runs if run.name == name]
    config = planned.config
    run = RunDirectory.create(sweep.run(planned), config, CharTokenizer("abc"), {"device": "cpu"})
    steps, per_step = config.train.steps, config.train.batch_size * config.model.block_size
    lines: list[dict[str, Any]] = []
    for i, loss in enumerate(losses):
        step = steps * i // (len(losses) - 1)
        at = {"step": step, "tokens": step * per_step, "seconds": seconds * step / steps}
        lines.append(at | {"val_loss": float(f"{loss:.7g}"), "val_perplexity": 2.0})
        lines.append(at | {"loss": loss, "memory_mb": memory, "lr": 1e-3})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = {
        "step": steps,
        "tokens": steps * per_step,
        "seconds": seconds,
        "best_loss": min(losses),
        "best_step": steps,
        "evaluation": {"loss": losses[-1]},
    }
    run.save(Checkpoint(model={}, optimizer={}, state=state))
    sweep.status[name] = Status("done")

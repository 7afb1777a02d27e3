"""What a run did, read from its folder: points of the curves, key figures, samples. All of it may be missing.

A run that was killed, or never logged, has a history as well: a short one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure import badness
from bonsaigpt.measure.health import Finding, Health
from bonsaigpt.spec import parameter_count
from bonsaigpt.train.callbacks.health import read_health
from bonsaigpt.train.callbacks.jsonl import read_metrics

__all__ = ["History", "Sample", "Series", "read_history"]

Series = tuple[np.ndarray, np.ndarray]
"""x and y of a curve, of equal length, every value finite."""


@dataclass(frozen=True)
class Sample:
    """What the model wrote after a step."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class History:
    """Figures of a whole run; None where the run has no such figure."""

    config: RunConfig
    environment: dict[str, Any]
    logs: list[dict[str, Any]]
    """Lines of training: loss, lr, grad_norm, tokens_per_second, memory_mb."""
    evaluations: list[dict[str, Any]]
    """Lines of evaluation: val_loss, val_perplexity, perhaps val_bits_per_byte, val_exact, val_ordered, val_margin."""
    samples: list[Sample]
    parameters: int | None
    steps: int
    """Steps that are in the metrics."""
    tokens: int
    seconds: float
    """Training time, evaluation and saving left out."""
    best: dict[str, Any]
    """The evaluation of lowest loss; empty if there was none."""
    chosen: dict[str, Any]
    """The evaluation of the best checkpoint, as ``train.best`` says; empty if there was none."""
    health: list[Health]
    """The looks at it; see docs/health.md."""
    findings: list[Finding]
    """What was wrong with it."""

    @property
    def finished(self) -> bool:
        """Whether all configured steps are done."""
        return self.steps >= self.config.train.steps

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the whole run."""
        return self.tokens / self.seconds if self.seconds > 0 else None

    @property
    def memory_mb(self) -> float | None:
        """Peak, 2^20 bytes."""
        values = self.training("memory_mb")[1]
        return float(values.max()) if values.size else None

    def score(self, name: str) -> float | None:
        """A figure of the evaluation of lowest loss (``loss``, ``perplexity``, ``bits_per_byte``), or of the best
        checkpoint (``exact``, ``ordered``, ``margin``)."""
        value = (self.chosen if name in ("exact", "ordered", "margin") else self.best).get(f"val_{name}")
        return float(value) if is_number(value) else None

    def training(self, y: str, x: str = "step") -> Series:
        """A curve through the lines of training."""
        return _series(self.logs, x, y)

    def validation(self, y: str = "val_loss", x: str = "step") -> Series:
        """A curve through the evaluations."""
        return _series(self.evaluations, x, y)


def read_history(run: RunDirectory) -> History:
    """Read what is there.

    Raises:
        ConfigError: the run's config.toml cannot be used.
    """
    config = run.config
    records = [r for r in read_metrics(run.path / "metrics.jsonl") if is_number(r["step"])]
    evaluations = [r for r in records if is_number(r.get("val_loss"))]
    try:
        parameters = parameter_count(config.model)
    except ConfigError:  # a vocabulary that was never set
        parameters = None
    health, monitor = read_health(run.path / "health.jsonl", config.model)
    return History(
        config=config,
        environment=run.environment,
        logs=[r for r in records if "loss" in r],
        evaluations=evaluations,
        samples=_samples(run.path / "samples"),
        parameters=parameters,
        steps=int(_last(records, "step")),
        tokens=int(_last(records, "tokens")),
        seconds=_last(records, "seconds"),
        best=min(evaluations, key=lambda r: r["val_loss"], default={}),
        chosen=min(evaluations, key=lambda r: _badness(r, config), default={}),
        health=health,
        findings=list(monitor.findings.values()),
    )


def _badness(line: dict[str, Any], config: RunConfig) -> tuple[float, float]:
    scores = {name.removeprefix("val_"): value for name, value in line.items() if is_number(value)}
    return badness(scores, config.train.best)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a curve can go through it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _last(records: Iterable[dict[str, Any]], name: str) -> float:
    return float(max((r[name] for r in records if is_number(r.get(name))), default=0))


def _series(records: list[dict[str, Any]], x: str, y: str) -> Series:
    points = [(r[x], r[y]) for r in records if is_number(r.get(x)) and is_number(r.get(y))]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _samples(folder: Path) -> list[Sample]:
    samples: list[Sample] = []
    for file in folder.glob("step-*.txt"):
        step = file.stem.removeprefix("step-")
        if step.isdigit():
            samples.append(Sample(int(step), file.read_text(encoding="utf-8", errors="replace")))
    return sorted(samples, key=lambda s: s.step)

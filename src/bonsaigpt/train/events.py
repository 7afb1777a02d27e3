"""What the loop tells its listeners: host values, never the trainer itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.config import RunConfig
from bonsaigpt.measure import Evaluation
from bonsaigpt.measure.health import Health

__all__ = [
    "Callback",
    "EvalEvent",
    "HealthEvent",
    "Listener",
    "LogEvent",
    "Outcome",
    "ProgressEvent",
    "RollbackEvent",
    "StartEvent",
    "StepEvent",
]


@dataclass(frozen=True, kw_only=True)
class StartEvent:
    """Before the first step."""

    run: RunDirectory
    config: RunConfig
    environment: dict[str, Any]
    step: int
    """Steps that are done already: 0, or where the run is resumed."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """After each step; it holds nothing that would have to wait for the device."""

    step: int
    """Steps done, this one included."""
    tokens: int
    """Targets seen, this step's included."""


@dataclass(frozen=True, kw_only=True)
class LogEvent:
    """Every ``log_interval`` steps, and at the last."""

    step: int
    tokens: int
    seconds: float
    """Training time so far, earlier sessions included; evaluation and saving are not in it."""
    loss: float
    """Of this step's batch, nats a token."""
    grad_norm: float
    """Before clipping."""
    skipped: int
    """Steps that the guard has skipped so far."""
    lr: float
    tokens_per_second: float
    """Since the last log event, training alone."""
    tflops: float
    """Floating-point operations of training in the same time, 10^12 a second (see measure/accounting.py)."""
    mfu: float
    """Those operations as a share of the device's peak (model FLOPs utilisation); environment.json says which peak."""
    memory_mb: float
    """Peak resident memory of this process, 2^20 bytes."""


@dataclass(frozen=True, kw_only=True)
class HealthEvent:
    """Every ``health.interval`` steps."""

    health: Health


@dataclass(frozen=True, kw_only=True)
class ProgressEvent:
    """While something goes on that is no training step."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class EvalEvent:
    """After each evaluation."""

    step: int
    tokens: int
    seconds: float
    evaluation: Evaluation
    is_best: bool
    write: Callable[[str, int], str]
    """``write(prompt, tokens)``: what the model of this moment writes. Costs nothing unless called."""


@dataclass(frozen=True, kw_only=True)
class RollbackEvent:
    """The run goes back to an earlier step, to go on from there with the data in another order."""

    step: int
    """Where the trouble was noticed."""
    back_to: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the training ended; told when the last checkpoint is on the disk, so that nothing can lose it."""

    step: int
    reason: str
    """``done``, ``patience`` (no new best for too long), or the name of the signal that asked for the stop."""
    best_loss: float
    best_step: int
    remark: str | None
    """What the user should know of the result, in words."""


class Listener(Protocol):
    """The hooks. A callback inherits ``Callback`` and overrides those it needs."""

    def on_start(self, event: StartEvent) -> None: ...
    def on_step(self, event: StepEvent) -> None: ...
    def on_log(self, event: LogEvent) -> None: ...
    def on_health(self, event: HealthEvent) -> None: ...
    def on_progress(self, event: ProgressEvent) -> None: ...
    def on_eval(self, event: EvalEvent) -> None: ...
    def on_rollback(self, event: RollbackEvent) -> None: ...
    def on_stop(self, event: Outcome) -> None: ...
    def close(self) -> None: ...


class Callback:
    """Hooks that do nothing. ``close`` is called whatever happened, after the others."""

    def on_start(self, event: StartEvent) -> None:
        """Before the first step."""

    def on_step(self, event: StepEvent) -> None:
        """After each step."""

    def on_log(self, event: LogEvent) -> None:
        """Every ``log_interval`` steps."""

    def on_health(self, event: HealthEvent) -> None:
        """Every ``health.interval`` steps."""

    def on_progress(self, event: ProgressEvent) -> None:
        """While an evaluation goes on."""

    def on_eval(self, event: EvalEvent) -> None:
        """After each evaluation."""

    def on_rollback(self, event: RollbackEvent) -> None:
        """When the run goes back to an earlier step."""

    def on_stop(self, event: Outcome) -> None:
        """After the last checkpoint."""

    def close(self) -> None:
        """Release what is held."""

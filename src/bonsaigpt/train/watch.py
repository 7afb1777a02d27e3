"""Is the run still healthy? Steps that were skipped, losses that ran away, and what to tell the user about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bonsaigpt.config import GuardConfig, RunConfig, SoftmaxAttention

__all__ = ["LOOK", "Watch", "diagnosis", "nothing_learned"]

LOOK = 10
"""Steps from one look to the next: few, as what is wrong only costs time, but not every one, as a look waits for the
device. No setting, and not how often a line is logged: what is seen decides whether a run goes back."""


@dataclass
class Watch:
    """What the loop remembers of the training losses at every ``LOOK`` steps; part of every checkpoint."""

    guard: GuardConfig
    descends: bool = True
    """Whether the training loss is to fall: what the run's objective says."""
    lowest: float = float("inf")
    """The lowest, nats a token."""
    high: int = 0
    """How many in a row were far above it."""

    def trouble(self, *, loss: float, skipped_in_a_row: float) -> str | None:
        """Look at a step and note its loss: None, or in words why the run must go back."""
        if skipped_in_a_row >= self.guard.max_skips:
            return f"{skipped_in_a_row:.0f} steps in a row had to be skipped: their loss or gradient was out of range"
        if not math.isfinite(loss):
            return None  # the step was skipped; one alone is no reason
        self.high = self.high + 1 if self.is_far(loss) else 0
        self.lowest = min(self.lowest, loss)
        if self.high >= 2:  # one batch may be odd
            return f"the training loss ran away to {loss:.3g}, from {self.lowest:.3g} before"
        return None

    def is_far(self, loss: float) -> bool:
        """Whether a loss is out of all proportion to what the run has reached: no batch and no schedule explains it."""
        return self.descends and not loss <= 2.0 * self.lowest + 1.0

    def is_lost(self, validation_loss: float, *, training_loss: float) -> bool:
        """Whether weights with these losses must not be saved. A model that only overfits may have as high a validation
        loss, but then its training loss is low."""
        ran_away = math.isfinite(training_loss) and self.is_far(training_loss) and self.is_far(validation_loss)
        return ran_away or not math.isfinite(validation_loss)

    def may_save(self, *, loss: float, skipped_in_a_row: float) -> bool:
        """Whether weights may be saved that nobody has evaluated. It notes nothing: when a run saves or is stopped must
        not change what it does later."""
        return skipped_in_a_row < self.guard.max_skips and not (math.isfinite(loss) and self.is_far(loss))

    def as_dict(self) -> dict[str, float | int | None]:
        """For state.json."""
        return {"lowest": self.lowest if math.isfinite(self.lowest) else None, "high": self.high}

    def load(self, saved: dict[str, float | int | None]) -> None:
        """Put back what ``as_dict`` gave."""
        lowest = saved["lowest"]
        self.lowest, self.high = float("inf") if lowest is None else float(lowest), int(saved["high"] or 0)


def diagnosis(config: RunConfig, *, step: int, why: str, rate: float, last_good: str) -> str:
    """What to say when a run gives up: what happened, the likely remedies, and where the good weights are."""
    optim = config.optim
    advice = [f"a lower --optim.lr (now {optim.lr:g}, {rate:.3g} at this step)"]
    if optim.matrices.kind == "muon":
        advice.append(f"a lower --optim.matrices.lr (now {optim.matrices.lr:g})")
    if optim.schedule.warmup < 50:
        advice.append(f"a longer --optim.schedule.warmup (now {optim.schedule.warmup} steps)")
    if optim.grad_clip == 0:
        advice.append("--optim.grad_clip 1")
    if isinstance(config.model.attention, SoftmaxAttention) and not config.model.attention.qk_norm:
        advice.append("--model.attention.qk_norm true")
    if config.train.precision in ("fp16",):
        advice.append("--train.precision bf16 or fp32")
    return (
        f"training diverged at step {step}: {why}. It happened again after {config.train.guard.rollbacks} returns to "
        f"the last good checkpoint with the data in another order, so the data is not the cause. {last_good}. "
        f"Try {'; '.join(advice)}"
    )


def nothing_learned(
    best_step: int, *, vocabulary: int, training_loss: float, validation_loss: float, run: object
) -> str | None:
    """At the end of a run that nothing stopped: None, or in words that it was for nothing, and what to try."""
    chance = math.log(vocabulary)
    if best_step == 0:
        found = "no evaluation was better than the one before the first step"
    elif min(training_loss, validation_loss) > 0.99 * chance:  # a model that overfits has a low training loss
        found = (
            f"a validation loss of {validation_loss:.2f} is no better than a guess ({vocabulary} tokens: {chance:.2f})"
        )
    else:
        return None
    return f"nothing was learned: {found}. If the run was not too short, find a better rate with bonsai study lr {run}"

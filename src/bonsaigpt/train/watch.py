"""Is the run still healthy? Steps that were skipped, losses that ran away, and what to tell the user about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bonsaigpt.config import GuardConfig, RunConfig

__all__ = ["Watch", "diagnosis"]


@dataclass
class Watch:
    """What the loop remembers of the losses it has seen; part of every checkpoint."""

    guard: GuardConfig
    lowest: float = float("inf")
    """Lowest logged training loss, nats a token."""
    high: int = 0
    """Logged losses in a row that were far above it."""

    def trouble(self, *, loss: float, skipped_in_a_row: float) -> str | None:
        """Look at one logged step: None, or in words why the run must go back."""
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
        return not loss <= 2.0 * self.lowest + 1.0

    def is_lost(self, validation_loss: float) -> bool:
        """Whether weights with this validation loss must not be saved. A model that only overfits may be as far off,
        but then its training loss of this moment is low."""
        return not math.isfinite(validation_loss) or (self.high > 0 and self.is_far(validation_loss))

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
    if not config.model.attention.qk_norm:
        advice.append("--model.attention.qk_norm true")
    if config.train.precision in ("fp16",):
        advice.append("--train.precision bf16 or fp32")
    return (
        f"training diverged at step {step}: {why}. It happened again after {config.train.guard.rollbacks} returns to "
        f"the last good checkpoint with the data in another order, so the data is not the cause. {last_good}. "
        f"Try {'; '.join(advice)}"
    )

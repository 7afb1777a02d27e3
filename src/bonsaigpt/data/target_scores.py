"""What a model said of single targets, in plain arrays that no engine is needed to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["TargetScores"]


@dataclass(frozen=True, kw_only=True)
class TargetScores:
    """Of N targets, row by row of their batches, in the order of the text."""

    losses_N: np.ndarray
    """Negative log-likelihood in nats, float64."""
    confidence_N: np.ndarray
    """Probability of the first choice, float64."""
    right_N: np.ndarray
    """Whether the target is the first choice, bool."""
    rows_N: np.ndarray
    """Number of the row that a target is in."""
    places_N: np.ndarray
    """Place of a target in its row: tokens before the one that it is predicted from."""

    def after(self, rows: int) -> TargetScores:
        """The same, with rows counted from there."""
        return replace(self, rows_N=self.rows_N + rows)

    @staticmethod
    def joined(parts: Sequence[TargetScores]) -> TargetScores:
        """All of them, one behind the other."""
        names = ("losses_N", "confidence_N", "right_N", "rows_N", "places_N")
        return TargetScores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

"""What calibration knows of one linear map: second moments of its inputs, and how its wished-for outputs go with them.

All that any least-squares fit of a map needs, in sums: E||t - W x||^2 = tr(W C W^T) - 2 tr(W M^T) + E||t||^2 with
C = E[x x^T] and M = E[t x^T]. If the inputs are those of a prefix that was compressed already, and the outputs those of
the model before, the fit makes up for the prefix's errors as far as it can.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Of a map from n inputs to m outputs, float64 means over tokens."""

    C: np.ndarray
    """E[x x^T], (n, n)."""
    M: np.ndarray
    """E[t x^T], (m, n), of the outputs t that are wished for."""
    power: float
    """E||t||^2."""
    tokens: int
    """How many the means are of."""

    def best(self, W: np.ndarray, *, ridge: float = 1e-4) -> np.ndarray:
        """The dense map whose outputs are nearest to the wished-for ones: the weight for every structure to be fitted
        to, in the metric of C. Where inputs were all but absent it stays ``W``; ``ridge`` is over the mean moment."""
        n = len(self.C)
        shrunk = self.C + ridge * np.trace(self.C) / n * np.eye(n)
        return W + np.linalg.solve(shrunk, (self.M - W @ self.C).T).T

    def error(self, W: np.ndarray) -> float:
        """E||t - W x||^2 / E||t||^2."""
        return float((np.vdot(W @ self.C, W) - 2 * np.vdot(W, self.M) + self.power) / self.power)

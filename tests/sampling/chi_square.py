"""Whether draws come from a distribution."""

from __future__ import annotations

import numpy as np

__all__ = ["fits"]


def fits(counts: np.ndarray, probs: np.ndarray) -> bool:
    """Pearson's chi-square test at a level of about one in a million; what has no probability must never occur.

    The critical value is Wilson and Hilferty's (1931). Cells that expect fewer than five draws are counted as one.
    """
    if counts[probs == 0].any():
        return False
    expected = probs * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = max(1, len(expected) - 1)
    statistic = ((observed - expected) ** 2 / expected).sum()
    spread = 2 / (9 * freedom)
    return bool(statistic <= freedom * (1 - spread + 4.75 * spread**0.5) ** 3)

"""The iterations that bring all singular values of a matrix near one: numbers that Muon has in every engine.

Amsel et al. 2025, The Polar Express (https://arxiv.org/abs/2505.16932): each quintic a x + b x^3 + c x^5 is the best
there is for the singular values that those before it leave, if they began within 0.001 to 1.
"""

from __future__ import annotations

__all__ = ["COEFFICIENTS", "SAFETY", "Quintic", "rounds"]

Quintic = tuple[float, float, float]

SAFETY = 1.01
"""Room for rounding: singular values a hundredth over one would otherwise grow."""
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
COEFFICIENTS: tuple[Quintic, ...] = tuple((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in _POLAR_EXPRESS)
"""One for each iteration; the last again for those beyond."""
_GRAM = 4
"""Iterations on the small side alone: its rounding errors grow with the square of the slopes, 0.02 after four."""


def rounds(iterations: int, shape: tuple[int, int], *, single: bool) -> list[tuple[Quintic, ...]]:
    """The quintics for a matrix of (rows, columns), no higher than wide, in groups to be composed on its small side
    before the long one is multiplied; one at a time unless that pays and the format is single precision."""
    quintics = tuple(COEFFICIENTS[min(i, len(COEFFICIENTS) - 1)] for i in range(iterations))
    at_once = _GRAM if single and shape[0] * 2 <= shape[1] else 1
    return [quintics[first : first + at_once] for first in range(0, iterations, at_once)]

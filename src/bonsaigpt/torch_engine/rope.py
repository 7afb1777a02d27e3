"""Rotary positions (Su et al. 2021, RoFormer, equation 34): pair i of a head turns by position * theta^(-2i/K).

A pair is channels (i, i + K/2), as in GPT-NeoX, Hugging Face and their Llama, or the neighbours (2i, 2i + 1), as in the
paper and GPT-J; the two differ by a fixed order of the channels of queries and keys. For contexts longer than the one
trained at the frequencies are scaled, in one of four ways.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bonsaigpt.config import LinearScaling, Llama3Scaling, NTKScaling, RopePosition, YarnScaling

__all__ = ["frequencies", "rotation", "temperature"]


def frequencies(position: RopePosition, width: int) -> Tensor:
    """Radians by which each pair turns from one position to the next, (width / 2,) float64."""
    scaling, theta = position.scaling, position.theta
    exponent = torch.arange(0, width, 2, dtype=torch.float64) / width
    if isinstance(scaling, LinearScaling):  # Chen et al. 2023, equation 4
        return theta**-exponent / scaling.factor
    if isinstance(scaling, NTKScaling):  # the last pair turns as if interpolated, the first as ever
        return (theta * scaling.factor ** (width / (width - 2))) ** -exponent
    if isinstance(scaling, YarnScaling):
        return _by_parts(scaling, theta, width, theta**-exponent)
    if isinstance(scaling, Llama3Scaling):
        return _by_turns(scaling, theta**-exponent)
    return theta**-exponent


def _by_parts(scaling: YarnScaling, theta: float, width: int, plain: Tensor) -> Tensor:
    """YaRN's frequencies (Peng et al. 2023, section 3.2), with the ramp over the number of the pair, between whole
    numbers, as the authors' code and Hugging Face's have it; in the paper it is over the number of turns."""

    def pair(turns: float) -> float:
        """The (fractional) number of the pair that turns so often over the original context."""
        return width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.fast)), 0)
    high = min(math.ceil(pair(scaling.slow)), width - 1)
    numbers = torch.arange(width // 2, dtype=torch.float64)
    interpolated = ((numbers - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - interpolated) + plain / scaling.factor * interpolated


def _by_turns(scaling: Llama3Scaling, plain: Tensor) -> Tensor:
    """Llama 3.1's frequencies (``apply_scaling`` in Meta's models/llama3/reference_impl/model.py)."""
    turns = scaling.original * plain / (2 * math.pi)
    kept = ((turns - scaling.slow) / (scaling.fast - scaling.slow)).clamp(0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def temperature(position: RopePosition) -> float:
    """The factor on queries and on keys with which YaRN sharpens the softmax (Peng et al. 2023, equation 22); 1
    elsewhere."""
    scaling = position.scaling
    return 0.1 * math.log(scaling.factor) + 1.0 if isinstance(scaling, YarnScaling) else 1.0


def rotation(position: RopePosition, width: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, times the temperature: two (..., width / 2) float32 tensors, computed in float64."""
    angles = positions.double()[..., None] * frequencies(position, width).to(positions.device)
    scale = temperature(position)
    return (angles.cos() * scale).float(), (angles.sin() * scale).float()

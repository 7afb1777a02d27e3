"""Rotary positions (Su et al. 2021, RoFormer, equation 34): pair i of a head turns by position * theta^(-2i/K).

The angles are NumPy's, in float64: they are constants of the compiled program. See
``torch_engine/rope.py`` for what the pairs and the scalings are.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from bonsaigpt.config import LinearScaling, Llama3Scaling, NTKScaling, RopePosition, YarnScaling

__all__ = ["frequencies", "rotate", "rotation", "temperature"]


def frequencies(position: RopePosition, width: int) -> np.ndarray:
    """Radians by which each pair turns from one position to the next, (width / 2,) float64."""
    scaling, theta = position.scaling, position.theta
    exponent = np.arange(0, width, 2) / width
    if isinstance(scaling, LinearScaling):  # Chen et al. 2023, equation 4
        return theta**-exponent / scaling.factor
    if isinstance(scaling, NTKScaling):  # the last pair turns as if interpolated, the first as ever
        return (theta * scaling.factor ** (width / (width - 2))) ** -exponent
    if isinstance(scaling, YarnScaling):
        return _by_parts(scaling, theta, width, theta**-exponent)
    if isinstance(scaling, Llama3Scaling):
        return _by_turns(scaling, theta**-exponent)
    return theta**-exponent


def _by_parts(scaling: YarnScaling, theta: float, width: int, plain: np.ndarray) -> np.ndarray:
    """YaRN's frequencies (Peng et al. 2023, section 3.2), with the ramp over the number of the pair."""

    def pair(turns: float) -> float:
        """The (fractional) number of the pair that turns so often over the original context."""
        return width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair(scaling.fast)), 0)
    high = min(math.ceil(pair(scaling.slow)), width - 1)
    interpolated = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain * (1 - interpolated) + plain / scaling.factor * interpolated


def _by_turns(scaling: Llama3Scaling, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1's frequencies (``apply_scaling`` in Meta's models/llama3/reference_impl/model.py)."""
    turns = scaling.original * plain / (2 * math.pi)
    kept = np.clip((turns - scaling.slow) / (scaling.fast - scaling.slow), 0, 1)
    return plain * kept + plain / scaling.factor * (1 - kept)


def temperature(position: RopePosition) -> float:
    """The factor on queries and on keys with which YaRN sharpens the softmax (Peng et al. 2023, equation 22)."""
    scaling = position.scaling
    return 0.1 * math.log(scaling.factor) + 1.0 if isinstance(scaling, YarnScaling) else 1.0


def rotation(position: RopePosition, width: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the angles of all positions below ``length``, times the temperature: (length, width / 2) twice."""
    angles = np.arange(length)[:, None] * frequencies(position, width)
    scale = temperature(position)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array, *, neighbours: bool) -> Array:
    """Turn pairs of the last axis (..., K) by angles given as cos and sin (..., K/2), which broadcast over the rest.

    Pairs are channels (i, i + K/2), or with ``neighbours`` (2i, 2i + 1).
    """
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    if neighbours:
        even, odd = x[..., 0::2], x[..., 1::2]
        return jnp.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((low * cos - high * sin, low * sin + high * cos), axis=-1)

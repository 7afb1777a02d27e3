"""Toy `zero_one`: independent symbols, 0 with probability p and 1 with 1 - p.

There is nothing to learn but p. So the best possible loss is the entropy, H(1/3) = 0.6365 nats a symbol, and any
model that stays above it wastes something: a check of a whole training stack in seconds.
"""

from __future__ import annotations

import math

import numpy as np

from bonsaigpt.config import ZeroOneData
from bonsaigpt.randomness import generator

__all__ = ["entropy", "floor", "text"]

_CHUNK = 1 << 20


def entropy(p_zero: float) -> float:
    """Entropy of one symbol in nats: the expected loss of a perfect model."""
    return -p_zero * math.log(p_zero) - (1 - p_zero) * math.log(1 - p_zero)


def floor(p_zero: float, symbols: np.ndarray) -> float:
    """Loss in nats of the true probabilities on these very symbols (0 and 1): the floor with its sampling noise."""
    ones = float(np.mean(symbols, dtype=np.float64))
    return -(1 - ones) * math.log(p_zero) - ones * math.log(1 - p_zero)


def text(config: ZeroOneData, seed: int) -> bytes:
    """All sequences one after the other as ASCII digits. No separator: the symbols are independent anyway."""
    total = config.sequences * config.length
    draws = generator(seed, "zero_one")
    threshold = np.uint32(round(config.p_zero * 2**32) - 1)
    digits = np.empty(total, dtype=np.uint8)
    for start in range(0, total, _CHUNK):  # chunks stay in the cache: twice as fast as one array of 40 MB
        part = digits[start : start + _CHUNK]
        np.greater(draws.integers(0, 2**32, size=len(part), dtype=np.uint32), threshold, out=part.view(np.bool_))
    digits += ord("0")
    return digits.tobytes()

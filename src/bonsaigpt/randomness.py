"""Randomness without state: every random number is a function of a key and a counter.

Nothing here holds a generator that somebody else could advance, so a batch, a dropout mask, an initial weight
or a sampled token never depends on what ran before it. The mixer is SplitMix64 (Steele, Lea and Flood, 2014,
"Fast splittable pseudorandom number generators", figure 15), vectorised over NumPy's wrapping uint64.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator", "hash64", "key", "permute", "uniform", "uniform_at"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 64-bit key that is a function of its parts, e.g. ``key(seed, "dropout", step)``."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A fresh NumPy generator (Philox) for one named purpose; two calls with equal parts start equal."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def hash64(key: int, counters: np.ndarray) -> np.ndarray:
    """One uint64 for each counter: element ``i`` depends on ``key`` and ``counters[i]`` only."""
    with np.errstate(over="ignore"):
        x = counters.astype(np.uint64) * _GOLDEN + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return x ^ (x >> np.uint64(31))


def uniform(key: int, counters: np.ndarray) -> np.ndarray:
    """One float64 in [0, 1) for each counter, with 53 random bits."""
    return (hash64(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_at(key: int, counter: int) -> float:
    """``uniform`` of a single counter, without NumPy: a microsecond instead of ten."""
    mask = 0xFFFFFFFFFFFFFFFF
    x = (counter * int(_GOLDEN) + key) & mask
    x = ((x ^ (x >> 30)) * int(_MIX_1)) & mask
    x = ((x ^ (x >> 27)) * int(_MIX_2)) & mask
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def permute(key: int, indices: np.ndarray, size: int) -> np.ndarray:
    """Element ``indices[i]`` of a keyed pseudorandom permutation of ``range(size)``, in O(1) memory.

    A balanced Feistel network of four rounds over the next even power of two, with cycle walking back into the
    range (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains", section 4).
    """
    if size < 1:
        raise ValueError(f"a permutation needs at least one element, got {size}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    out = indices.astype(np.uint64)
    todo = np.arange(out.size)
    while todo.size:
        x = out.reshape(-1)[todo]
        left, right = x >> shift, x & mask
        for round_number in range(4):
            left, right = right, left ^ (hash64(key + round_number & 0xFFFFFFFFFFFFFFFF, right) & mask)
        out.reshape(-1)[todo] = left << shift | right
        todo = todo[out.reshape(-1)[todo] >= size]  # walk the cycle until it is back inside
    return out.astype(np.int64)

"""Toy `zero_one`: symbols 0 and 1, independent of each other, or each depending on the k before it.

Independent, with P(0) = p, there is nothing to learn but p. So the best possible loss is the entropy, H(1/3) = 0.6365
nats a symbol, and any model that stays above it wastes something: a check of a whole training stack in seconds.

A Markov chain of order k has 2^k states, the strings of the last k symbols, and one P(0) for each. Its entropy rate is
the entropy of the next symbol averaged over the stationary distribution of the states (Cover and Thomas 2006, theorem
4.2.4), a linear system of 2^k equations: again the loss of a perfect model, which here has to look k symbols back. (The
first k - 1 targets of a window lack some of those, so a model pays at most (k - 1) / block_size * ln 2 more.)
"""

from __future__ import annotations

import math

import numpy as np

from bonsaigpt.config import ZeroOneData
from bonsaigpt.randomness import generator

__all__ = ["entropy", "entropy_rate", "floor", "stationary", "text", "words"]

_CHUNK = 1 << 20


def words(config: ZeroOneData) -> str:
    """What the symbols are, for people."""
    if config.p_zero_after:
        return f"a Markov chain of order {_order(config)}, P(0) = {', '.join(f'{p:.6g}' for p in config.p_zero_after)}"
    return f"P(0) = {config.p_zero:.6g}"


def entropy(p_zero: float) -> float:
    """Entropy of one symbol in nats: the expected loss of a perfect model."""
    return -p_zero * math.log(p_zero) - (1 - p_zero) * math.log(1 - p_zero)


def entropy_rate(config: ZeroOneData) -> float:
    """Entropy in nats of a symbol whose predecessors are known."""
    if not config.p_zero_after:
        return entropy(config.p_zero)
    shares = stationary(config.p_zero_after)
    return math.fsum(share * entropy(p) for share, p in zip(shares.tolist(), config.p_zero_after, strict=True))


def stationary(p_zero_after: tuple[float, ...]) -> np.ndarray:
    """How often each state of the chain comes in the long run, (2^k,) float64; it exists and is the only one, because
    no probability is 0 or 1."""
    states = len(p_zero_after)
    p_zero = np.array(p_zero_after)
    state = np.arange(states)
    moves = np.zeros((states, states))
    moves[state, 2 * state % states] += p_zero
    moves[state, (2 * state + 1) % states] += 1 - p_zero
    # pi (P - I) = 0 has one equation too many; that the shares sum to one takes its place.
    equations = (moves - np.eye(states)).T
    equations[-1] = 1.0
    return np.linalg.solve(equations, np.eye(states)[-1])


def floor(config: ZeroOneData, symbols: np.ndarray, start: int) -> float:
    """Loss in nats of the true probabilities on ``symbols[start:]`` (0 and 1), what stands before them being known: the
    floor of these very symbols, sampling noise included."""
    if not config.p_zero_after:
        ones = float(np.mean(symbols[start:], dtype=np.float64))
        return -(1 - ones) * math.log(config.p_zero) - ones * math.log(1 - config.p_zero)
    order, states = _order(config), len(config.p_zero_after)
    state = np.zeros(len(symbols) - start, dtype=np.int64)
    for back in range(order, 0, -1):
        state = 2 * state + symbols[start - back : len(symbols) - back]
    counts = np.bincount(2 * state + symbols[start:], minlength=2 * states).reshape(states, 2)
    p_zero = np.array(config.p_zero_after)
    return float(-(counts[:, 0] @ np.log(p_zero) + counts[:, 1] @ np.log1p(-p_zero)) / len(state))


def text(config: ZeroOneData, seed: int) -> bytes:
    """All sequences one after the other as ASCII digits, without separators: independent symbols need none, and a chain
    runs on through all of them."""
    if config.p_zero_after:
        return (_chain(config, seed) + np.uint8(ord("0"))).tobytes()
    total = config.sequences * config.length
    draws = generator(seed, "zero_one")
    threshold = np.uint32(round(config.p_zero * 2**32) - 1)
    digits = np.empty(total, dtype=np.uint8)
    for start in range(0, total, _CHUNK):  # chunks stay in the cache: twice as fast as one array of 40 MB
        part = digits[start : start + _CHUNK]
        np.greater(draws.integers(0, 2**32, size=len(part), dtype=np.uint32), threshold, out=part.view(np.bool_))
    digits += ord("0")
    return digits.tobytes()


def _chain(config: ZeroOneData, seed: int) -> np.ndarray:
    """One chain over all sequences, (N,) uint8.

    All sequences are walked at once. Where each starts follows from where the one before it ends; so they are first
    walked from every state, then from the right one, with the same draws.
    """
    states, sequences = len(config.p_zero_after), config.sequences
    draws = generator(seed, "zero_one", "chain")
    uniform = draws.random((config.length, sequences), dtype=np.float32)
    p_zero = np.array(config.p_zero_after, dtype=np.float32)

    def walk(state: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The states after a whole sequence; ``state`` is (sequences,) or (states, sequences)."""
        for step, drawn in enumerate(uniform):
            symbol = drawn >= p_zero[state]
            state = (2 * state + symbol) % states
            if out is not None:
                out[:, step] = symbol
        return state

    ends = walk(np.repeat(np.arange(states)[:, None], sequences, axis=1))
    starts = np.empty(sequences, dtype=np.int64)
    state = int(draws.choice(states, p=stationary(config.p_zero_after)))
    for number in range(sequences):
        starts[number], state = state, int(ends[state, number])
    symbols = np.empty((sequences, config.length), dtype=np.uint8)
    walk(starts, symbols)
    return symbols.reshape(-1)


def _order(config: ZeroOneData) -> int:
    return len(config.p_zero_after).bit_length() - 1

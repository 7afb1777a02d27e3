"""How fast a model decodes here, and how near that comes to the machine's limit.

For every token a step reads all weights once, whatever the number of rows, and the keys and values of each row so far:
that traffic over the bandwidth of the memory is the least time that a step can take (Pope et al. 2022, section 3.3),
unless a cache holds them: a small model's share of the roofline is above one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from bonsaigpt.engines import Decoder

__all__ = ["DecodeFigures", "measure_decoding"]


@dataclass(frozen=True, kw_only=True)
class DecodeFigures:
    """Decoding with one number of rows; times are medians over the rounds."""

    rows: int
    prompt: int
    """Tokens that each row held before."""
    new: int
    """Steps of a round, each one token for every row."""
    rounds: int
    first_token_ms: float
    """Milliseconds from a prompt to the logits of its continuation, one row."""
    prefill: float
    """Tokens a second of that."""
    step_ms: float
    decode: float
    """New tokens a second, all rows together."""
    decode_best: float
    """Of the best round: what is left when others use the machine least."""
    weight_bytes: int
    """Read by a step."""
    cache_bytes: int
    """Read by a step, on average over the round."""
    bandwidth: float
    """Bytes a second that were read."""
    roofline: float
    """The share of what the memory was measured to give."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_decoding(
    decoder: Decoder,
    *,
    vocab_size: int,
    rows: Sequence[int],
    prompt: int,
    new: int,
    seconds: float,
    read_rate: float,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[DecodeFigures]:
    """Figures for each number of rows, greedily continuing prompts of random tokens, for about ``seconds`` each.

    Args:
        read_rate: bytes a second that the memory gives.
    """
    generator = np.random.default_rng(0)
    prompts = generator.integers(0, vocab_size, (max(rows), prompt))
    token_bytes = decoder.bits() / 8 / decoder.rows / decoder.block_size
    found: list[DecodeFigures] = []
    for number, count in enumerate(rows):
        advance(f"decoding {count} row{'s' * (count > 1)}", number, len(rows))
        firsts: list[float] = []
        steps: list[float] = []
        start = time.perf_counter()
        while len(steps) < 4 or time.perf_counter() < start + seconds:
            first, step = _round(decoder, prompts[:count], new)
            firsts.append(first)
            steps.append(step)
        firsts, steps = firsts[1:], steps[1:]  # the first round touches memory and wakes threads
        cache_bytes = round(count * token_bytes * (prompt + (new + 1) / 2))
        step = median(steps)
        bandwidth = (decoder.weight_bytes + cache_bytes) / step
        found.append(
            DecodeFigures(
                rows=count,
                prompt=prompt,
                new=new,
                rounds=len(steps),
                first_token_ms=1e3 * median(firsts),
                prefill=prompt / median(firsts),
                step_ms=1e3 * step,
                decode=count / step,
                decode_best=count / min(steps),
                weight_bytes=decoder.weight_bytes,
                cache_bytes=cache_bytes,
                bandwidth=bandwidth,
                roofline=bandwidth / read_rate,
            )
        )
    return found


def _round(decoder: Decoder, prompts: np.ndarray, new: int) -> tuple[float, float]:
    """Seconds to the first token of one row, and seconds a step of all."""
    count = len(prompts)
    for row in range(count):
        decoder.truncate(row, 0)
    began = time.perf_counter()
    tokens = np.full(count, decoder.prefill(0, prompts[0]).argmax())
    first = time.perf_counter() - began
    for row in range(1, count):
        tokens[row] = decoder.prefill(row, prompts[row]).argmax()
    rows = np.arange(count)
    began = time.perf_counter()
    for _ in range(new):
        tokens = decoder.step(rows, tokens).argmax(axis=1)
    return first, (time.perf_counter() - began) / new

"""The oracle: read the whole context again for every token. Slow, without a cache, plainly right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bonsaigpt.engines import Engine
from bonsaigpt.generate.session import Overflow, check_lengths, context_start
from bonsaigpt.sampling import Sampling, choose

__all__ = ["generate_uncached"]


def generate_uncached(
    engine: Engine,
    model: Any,
    prompt_BT: np.ndarray,
    *,
    tokens: int,
    sampling: Sampling,
    overflow: Overflow = "slide",
    slide: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[np.ndarray]:
    """What ``generate`` must equal; same arguments, same tokens."""
    block = engine.block_size(model)
    slide = check_lengths(prompt_BT.shape[1], tokens, block, overflow, slide)
    seen = prompt_BT.astype(np.int64)
    for _ in range(tokens):
        context = seen[:, context_start(seen.shape[1], block, slide) :]
        token_B = choose(engine.next_logits(model, context)[:, :vocab_size], sampling, position=seen.shape[1])
        yield token_B
        seen = np.concatenate([seen, token_B[:, None]], axis=1)

"""The oracle: read the whole context again for every token. Slow, without a cache, plainly right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bonsaigpt.engines import Engine
from bonsaigpt.generate.context import Overflow, check_lengths, context_start
from bonsaigpt.sampling import Chooser, Sampling

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
    choosers: list[Chooser] = []
    for _ in range(tokens):
        context = seen[:, context_start(seen.shape[1], block, slide) :]
        logits_BV = engine.next_logits(model, context)[:, :vocab_size]
        choosers = choosers or [
            Chooser(replace(sampling, row=row), prompt=prompt, vocab_size=logits_BV.shape[1])
            for row, prompt in enumerate(seen)
        ]
        token_B = np.zeros(len(seen), dtype=np.int64)
        for row, chooser in enumerate(choosers):
            token_B[row] = chooser.choose(logits_BV[row], position=seen.shape[1])
            chooser.accept(int(token_B[row]))
        yield token_B
        seen = np.concatenate([seen, token_B[:, None]], axis=1)

"""Whole texts in one call, over a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Engine
from bonsaigpt.generate.context import Overflow
from bonsaigpt.generate.requests import Completion, Event, Request
from bonsaigpt.generate.session import Session
from bonsaigpt.sampling import Sampling

__all__ = ["best_first", "generate", "generate_text"]


def generate(
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
    """Yield the next token of every row, (B,) int64, ``tokens`` times.

    Args:
        prompt_BT: at least one token in each row; rows are continued independently of each other.
        overflow: what to do past the block size.
        slide: tokens dropped at once under ``slide``; none means an eighth of the block.
        vocab_size: draw from the first so many ids alone: a head padded beyond its tokenizer has ids without a text.

    Raises:
        GenerateError: an empty prompt; a prompt with its continuation beyond the block under ``error``.
    """
    requests = [
        Request(
            prompt=prompt.tolist(),
            max_tokens=tokens,
            sampling=replace(sampling, row=row),
            overflow=overflow,
            slide=slide,
        )
        for row, prompt in enumerate(prompt_BT)
    ]
    decoder = engine.decoder(model, rows=len(requests), tokens=tokens * len(requests))
    session = Session(decoder, vocab_size=vocab_size)
    for request in requests:
        session.add(request)
    for _ in range(tokens):
        events = session.step()
        for event in events:
            event.check()
        yield np.array([event.token for event in events], dtype=np.int64)


def generate_text(
    engine: Engine,
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    samples: int = 1,
    tokens: int,
    sampling: Sampling,
    overflow: Overflow = "slide",
    slide: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Continue one prompt several times; the continuations, without the prompt.

    Row ``r`` is the same however many samples are drawn beside it. ``on_text(row, piece)`` receives each row's text
    as soon as it is whole characters.
    """
    request = Request(
        prompt=tokenizer.encode(prompt).tolist(), max_tokens=tokens, sampling=sampling, overflow=overflow, slide=slide
    )
    decoder = engine.decoder(model, rows=samples, tokens=tokens * samples)

    def on_event(event: Event) -> None:
        if event.piece and on_text is not None:
            on_text(event.request, event.piece)

    requests = [replace(request, sampling=replace(sampling, row=row)) for row in range(samples)]
    return [done.text for done in Session(decoder, tokenizer).run(requests, on_event=on_event)]


def best_first(completions: list[Completion]) -> list[Completion]:
    """Best of n: the texts by their mean log-probability of a token, by the model's own distribution.

    The mean and not the sum: of texts that end by themselves the sum would take the shortest. A text without a token
    has no mean, and comes last.
    """
    means = [(done, done.mean_logprob) for done in completions]
    return [done for done, _ in sorted(means, key=lambda pair: np.inf if pair[1] is None else -pair[1])]

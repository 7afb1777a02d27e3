"""Generation with a key/value cache, past the block size as well if asked to.

A learned position has no vector beyond the block, so nothing can simply go on there. Both ways out hold for every
kind of position: `error` refuses before anything is generated, and `slide` drops the oldest tokens of the context and
reads the rest again from position 0. It drops an eighth of a block at once, so that one token in many pays for the
re-reading; with ``slide=1`` it is nanoGPT's moving window exactly.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Engine
from bonsaigpt.errors import GenerateError
from bonsaigpt.sampling import Sampling, choose

__all__ = ["Overflow", "context_start", "generate", "generate_text"]

Overflow = Literal["error", "slide"]


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
    block = engine.block_size(model)
    slide = check_lengths(prompt_BT.shape[1], tokens, block, overflow, slide)
    seen = prompt_BT.astype(np.int64)
    cache = engine.cache(model, batch=len(seen))
    start = context_start(seen.shape[1], block, slide)
    fresh = seen[:, start:]
    for _ in range(tokens):
        logits_BV = engine.next_logits(model, fresh, cache)[:, :vocab_size]
        token_B = choose(logits_BV, sampling, position=seen.shape[1])
        yield token_B
        seen = np.concatenate([seen, token_B[:, None]], axis=1)
        moved = context_start(seen.shape[1], block, slide)
        if moved == start:
            fresh = seen[:, -1:]
        else:  # every position in the cache is wrong now: read the shorter context again
            start = moved
            cache.clear()
            fresh = seen[:, start:]


def context_start(length: int, block: int, slide: int) -> int:
    """First token that still counts when ``length`` tokens were seen: 0, then multiples of ``slide``."""
    return 0 if length <= block else -(-(length - block) // slide) * slide


def check_lengths(prompt: int, tokens: int, block: int, overflow: Overflow, slide: int | None) -> int:
    """Refuse what cannot be generated; the number of tokens to drop at once."""
    if prompt < 1:
        raise GenerateError("the prompt is empty: give at least one character, e.g. --prompt $'\\n'")
    if tokens < 0:
        raise GenerateError(f"{tokens} new tokens cannot be: use 0 or more")
    if overflow == "error" and prompt + tokens - 1 > block:  # the last token is never read
        raise GenerateError(
            f"a prompt of {prompt} and {tokens} new tokens do not fit the model's block of {block}: shorten one, "
            "or let the context slide with --overflow slide"
        )
    slide = slide if slide is not None else max(1, block // 8)
    if not 1 <= slide <= block:
        raise GenerateError(f"slide = {slide} cannot be: drop 1 to {block} tokens (the block size) at once")
    return slide


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
    ids = tokenizer.encode(prompt)
    prompt_BT = np.tile(ids.astype(np.int64), (samples, 1))
    streams = [TextStream(tokenizer) for _ in range(samples)]
    drawn = generate(
        engine,
        model,
        prompt_BT,
        tokens=tokens,
        sampling=sampling,
        overflow=overflow,
        slide=slide,
        vocab_size=tokenizer.vocab_size,
    )
    for token_B in drawn:
        for row, token in enumerate(token_B.tolist()):
            piece = streams[row].push(token)
            if piece and on_text:
                on_text(row, piece)
    for row, stream in enumerate(streams):
        rest = stream.finish()
        if rest and on_text:
            on_text(row, rest)
    return [stream.text for stream in streams]


class TextStream:
    """Tokens to text, holding back the bytes of a character that is not whole yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text = ""

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        piece = self._decoder.decode(self._tokenizer.decode_bytes([token]))
        self.text += piece
        return piece

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        piece = self._decoder.decode(b"", final=True)
        self.text += piece
        return piece

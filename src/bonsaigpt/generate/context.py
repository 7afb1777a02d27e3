"""What the model sees of a text, past its block size as well if asked to.

A learned position has no vector beyond the block, so nothing can simply go on there. Both ways out hold for every
kind of position: `error` refuses before anything is generated, and `slide` drops the oldest tokens of the context and
reads the rest again from position 0. It drops an eighth of a block at once, so that one token in many pays for the
re-reading; with ``slide=1`` it is nanoGPT's moving window exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bonsaigpt.engines import Decoder
from bonsaigpt.errors import GenerateError

__all__ = ["Context", "Overflow", "check_lengths", "context_start", "read"]

Overflow = Literal["error", "slide"]


class Context:
    """One text in one row of a decoder: its tokens, the first one that the model sees, and how many of those it read.

    Args:
        slide: tokens dropped at once past the block.
        held: of the first tokens that the model sees, how many the row's cache holds already.
    """

    def __init__(self, row: int, tokens: Sequence[int], *, block: int, slide: int, held: int = 0) -> None:
        self.row, self.tokens = row, list(tokens)
        self._block, self._slide = block, slide
        self.start = context_start(len(self.tokens), block, slide)
        self.held = held

    def append(self, token: int) -> None:
        """The text goes on."""
        self.tokens.append(token)
        moved = context_start(len(self.tokens), self._block, self._slide)
        if moved != self.start:  # every position in the cache is wrong now: the shorter context is read again
            self.start, self.held = moved, 0

    def unread(self) -> list[int]:
        """The tokens that the model has not read."""
        return self.tokens[self.start + self.held :]

    def seen(self) -> list[int]:
        """The tokens that the row's cache holds."""
        return self.tokens[self.start : self.start + self.held]

    def room(self) -> int:
        """How many tokens can follow before the context moves."""
        return self._block - (len(self.tokens) - self.start)


def read(decoder: Decoder, contexts: Sequence[Context]) -> np.ndarray:
    """Let the model read what is new in each text; logits after the last tokens, (R, V), valid until the next call.

    Rows with one new token are one step together; the others are read one after the other.
    """
    fresh = [context.unread() for context in contexts]
    single = [i for i, context in enumerate(contexts) if context.held and len(fresh[i]) == 1]
    if len(single) == len(contexts):
        rows = np.array([context.row for context in contexts])
        logits_RV = decoder.step(rows, np.array([tokens[0] for tokens in fresh]))
        for context in contexts:
            context.held += 1
        return logits_RV
    found: dict[int, np.ndarray] = {}
    if single:
        rows = np.array([contexts[i].row for i in single])
        stepped = decoder.step(rows, np.array([fresh[i][0] for i in single]))
        found |= {i: logits.copy() for i, logits in zip(single, stepped, strict=True)}
        for i in single:
            contexts[i].held += 1
    for i, context in enumerate(contexts):
        if i not in found:
            decoder.truncate(context.row, context.held)
            found[i] = decoder.prefill(context.row, np.array(fresh[i])).copy()
            context.held += len(fresh[i])
    return np.stack([found[i] for i in range(len(contexts))])


def context_start(length: int, block: int, slide: int) -> int:
    """First token that still counts when ``length`` tokens were seen: 0, then multiples of ``slide``."""
    return 0 if length <= block else -(-(length - block) // slide) * slide


def check_lengths(prompt: int, tokens: int, block: int, overflow: Overflow, slide: int | None) -> int:
    """Refuse what cannot be generated; the number of tokens to drop at once.

    Raises:
        GenerateError: an empty prompt; a prompt with its continuation beyond the block under ``error``; a slide of
            nothing or of more than the block.
    """
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

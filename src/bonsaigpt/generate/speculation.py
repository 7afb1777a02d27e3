"""Guesses at the next tokens, by a smaller model or from the text itself.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): the model reads several guessed tokens in one pass and
keeps as many as it may without changing the distribution that tokens come from.

A draft that *draws* its guesses says from which probabilities, and the model accepts or replaces each by rejection
(``Chooser.judge``): at temperature 0 the text is the plain one, above it another one of the same distribution. A draft
without probabilities, as prompt look-up is, has its guesses compared with what the model chooses anyway: the text is
the plain one, token for token. (To let a draft model draw with the model's own noise would give that as well, Daliri et
al. 2024, but fewer guesses stand: see docs/LOG.md.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bonsaigpt.engines import Decoder
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate.context import Context, read
from bonsaigpt.sampling import Chooser

__all__ = ["Draft", "Guess", "LookupDraft", "ModelDraft", "Speculation"]

Guess = tuple[int, np.ndarray | None]
"""A token, and the probabilities that it was drawn from, (V,), if it was drawn."""


@dataclass
class Speculation:
    """How often a draft was right."""

    rounds: int = 0
    guessed: int = 0
    right: int = 0

    @property
    def agreement(self) -> float:
        """Share of the guesses that stood."""
        return self.right / max(1, self.guessed)

    @property
    def tokens_a_round(self) -> float:
        """Tokens for each pass of the model: the guesses that stood, and one more."""
        return (self.right + self.rounds) / max(1, self.rounds)


class Draft(Protocol):
    """Something that guesses."""

    def guess(self, context: Context, chooser: Chooser, most: int) -> list[Guess]:
        """At most so many next tokens of a text; none if there is nothing to guess from."""
        ...


class ModelDraft:
    """A smaller model with the same tokenizer.

    Args:
        decoder: of the draft, with as many rows as the model's.
        count: tokens to guess at once.
    """

    def __init__(self, decoder: Decoder, *, count: int = 4) -> None:
        _check_count(count)
        self._decoder, self._count = decoder, count
        self._read: dict[int, Context] = {}

    def guess(self, context: Context, chooser: Chooser, most: int) -> list[Guess]:
        own = self._follow(context)
        guesser, guesses = chooser.guesser(), []
        for ahead in range(min(self._count, most)):
            [logits_V] = read(self._decoder, [own])
            guesses.append(guesser.guess(logits_V, position=len(context.tokens) + ahead))
            guesser.accept(guesses[-1][0])
            own.append(guesses[-1][0])
        return guesses

    def _follow(self, context: Context) -> Context:
        """What the model sees of the text, or the end of it, in the draft's own row with what that holds already."""
        block = self._decoder.block_size
        own = Context(context.row, context.tokens[context.start :], block=block, slide=max(1, block // 8))
        last = self._read.get(context.row)
        if last is not None:
            seen, wanted = last.seen(), own.unread()
            while own.held < min(len(seen), len(wanted) - 1) and seen[own.held] == wanted[own.held]:
                own.held += 1
            own.held = self._decoder.reach(own.row, own.held)
            self._decoder.truncate(own.row, own.held)
        self._read[context.row] = own
        return own


class LookupDraft:
    """What followed the last words where they stood before in the text (prompt look-up, Saxena 2023).

    Args:
        length: tokens that must have stood there; the latest such place counts.
        count: tokens to guess at once.
    """

    def __init__(self, *, length: int = 3, count: int = 4) -> None:
        _check_count(count)
        if length < 1:
            raise GenerateError(f"a look-up of the last {length} tokens cannot be: use 1 or more")
        self._length, self._count = length, count

    def guess(self, context: Context, chooser: Chooser, most: int) -> list[Guess]:
        tokens, length = context.tokens, self._length
        last = tokens[-length:]
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - 1] == last[-1] and tokens[end - length : end] == last:
                return [(token, None) for token in tokens[end : end + min(self._count, most)]]
        return []


def _check_count(count: int) -> None:
    if count < 1:
        raise GenerateError(f"{count} guesses at once cannot be: use 1 or more")

"""One row's choice of its next token; and many rows' at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bonsaigpt.errors import GenerateError
from bonsaigpt.randomness import key, uniform_at
from bonsaigpt.sampling.rules import candidates
from bonsaigpt.sampling.settings import Sampling

__all__ = ["Chooser", "Constraint", "choose_rows", "log_probabilities"]


class Constraint(Protocol):
    """Where a text stands in a pattern that it must follow."""

    def allowed(self) -> np.ndarray:
        """Which tokens the pattern can go on with, (V,) bool. Not to be changed."""
        ...

    def advance(self, token: int) -> None:
        """The text goes on with an allowed token."""
        ...

    def is_done(self) -> bool:
        """Whether the text may end here: it matches the whole pattern."""
        ...


class Chooser:
    """The state of one row: what was said, for the penalties, and the place in the constraint.

    Args:
        prompt: the row's first tokens, (T,).
        vocab_size: draw from the first so many ids alone.
        constraint: at its beginning; this row's own.

    Raises:
        GenerateError: a biased token that is outside the vocabulary.
    """

    def __init__(
        self, sampling: Sampling, *, prompt: np.ndarray, vocab_size: int, constraint: Constraint | None = None
    ) -> None:
        self.sampling, self.vocab_size, self.constraint = sampling, vocab_size, constraint
        self._purpose = "sample"
        self.is_plain = constraint is None and not sampling.penalises and not sampling.logit_bias
        """Whether the logits are used as the model gave them."""
        remembered = vocab_size if sampling.penalises else 0
        self._said = np.zeros(remembered, dtype=bool)
        self._counts = np.zeros(remembered)
        if sampling.penalises:
            self._said[np.asarray(prompt, dtype=np.int64)] = True
        bias = sampling.logit_bias
        if not all(0 <= token < vocab_size for token in bias):
            bad = next(token for token in bias if not 0 <= token < vocab_size)
            raise GenerateError(f"there is no token {bad} to bias: the vocabulary has the ids 0 to {vocab_size - 1}")
        self._biased = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float64, count=len(bias))

    def choose(self, logits_V: np.ndarray, *, position: int) -> int:
        """Draw the token at ``position`` of the text.

        Raises:
            GenerateError: the logits are not finite, or the constraint has no token to go on with.
        """
        logits, largest = self._adjusted(logits_V)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        ids, weights = candidates(logits, self.sampling, largest)
        index = _draw(weights, self.sampling, position, self._purpose)
        return index if ids is None else int(ids[index])

    def distribution(self, logits_V: np.ndarray) -> np.ndarray:
        """Log-probabilities that ``choose`` draws from, (V,) float64; minus infinity for what cannot be drawn."""
        with np.errstate(divide="ignore"):
            return np.log(self._probabilities(logits_V))

    def guess(self, logits_V: np.ndarray, *, position: int) -> tuple[int, np.ndarray]:
        """As ``choose``, and the probabilities that it was drawn from, (V,): what ``judge`` needs."""
        probs = self._probabilities(logits_V)
        return _draw(probs, self.sampling, position, self._purpose), probs

    def judge(self, guess: int, guess_V: np.ndarray, logits_V: np.ndarray, *, position: int) -> int:
        """The token at ``position``, where a guess was drawn from the probabilities ``guess_V``.

        Leviathan et al. 2023, algorithm 1: the guess x stands with probability min(1, p(x) / q(x)); else the token is
        drawn from what p has more than q. Either way it comes from p, that is from ``distribution`` (their theorem 1).
        """
        probs = self._probabilities(logits_V)
        if _noise(self.sampling, position, "accept") * guess_V[guess] < probs[guess]:
            return guess
        more = np.maximum(probs - guess_V, 0.0)
        # Refused, q is above p at the guess, so p is above q elsewhere, unless rounding alone made the difference.
        return _draw(more if more.any() else probs, self.sampling, position, self._purpose)

    def guesser(self) -> Chooser:
        """A copy with noise of its own and without the constraint, for a draft that guesses what this one chooses."""
        copy = Chooser(self.sampling, prompt=np.empty(0), vocab_size=self.vocab_size)
        copy._said, copy._counts, copy._purpose = self._said.copy(), self._counts.copy(), "draft"
        return copy

    def leaves(self, token: int) -> bool:
        """Whether this token ends the text: its pattern is complete, and the token does not go on with it."""
        return self.constraint is not None and not self.constraint.allowed()[token]

    def accept(self, token: int) -> None:
        """The text goes on with this token."""
        if self.sampling.penalises:
            self._said[token] = True
            self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.advance(token)

    def _probabilities(self, logits_V: np.ndarray) -> np.ndarray:
        logits, largest = self._adjusted(logits_V)
        whole = np.zeros(self.vocab_size)
        if self.sampling.temperature == 0:
            whole[logits.argmax()] = 1.0
        else:
            ids, weights = candidates(logits, self.sampling, largest)
            whole[slice(None) if ids is None else ids] = weights / weights.sum()
        return whole

    def _adjusted(self, logits_V: np.ndarray) -> tuple[np.ndarray, float]:
        """The logits after rules 1 to 3 (penalties, bias, constraint), and the largest."""
        logits = logits_V if len(logits_V) == self.vocab_size else logits_V[: self.vocab_size]
        largest = float(np.maximum.reduce(logits))
        _check_finite(largest)
        if self.is_plain:
            return logits, largest
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            logits = self._ruled(logits.astype(np.float64))
        largest = float(np.maximum.reduce(logits))
        if largest == -np.inf:
            raise GenerateError("no token of the vocabulary can go on with the pattern: change the pattern")
        if not math.isfinite(largest):
            raise GenerateError("the penalties make an infinity of a logit: use milder ones")
        return logits, largest

    def _ruled(self, logits: np.ndarray) -> np.ndarray:
        """Rules 1 to 3, in place."""
        s = self.sampling
        if s.repetition_penalty != 1:
            # Keskar et al. 2019, section 4.1, with the sign that it takes to make negative logits less likely too.
            said = logits[self._said]
            logits[self._said] = np.where(said > 0, said / s.repetition_penalty, said * s.repetition_penalty)
        if s.frequency_penalty or s.presence_penalty:
            logits -= s.frequency_penalty * self._counts + s.presence_penalty * (self._counts > 0)
        if len(self._biased):
            logits[self._biased] += self._bias
        # Where the pattern is complete the model is free: what leaves the pattern ends the text.
        if self.constraint is not None and not self.constraint.is_done():
            logits[~self.constraint.allowed()] = -np.inf
        return logits


def choose_rows(logits_RV: np.ndarray, choosers: Sequence[Chooser], positions: Sequence[int]) -> list[int]:
    """``choose`` of each row, the same tokens; rows without cuts, penalties and constraints are done together."""
    if len(choosers) == 1:
        return [choosers[0].choose(logits_RV[0], position=positions[0])]
    tokens = [0] * len(choosers)
    greedy: list[int] = []
    drawn: list[int] = []
    for row, chooser in enumerate(choosers):
        if chooser.is_plain and chooser.sampling.temperature == 0:
            greedy.append(row)
        elif chooser.is_plain and not chooser.sampling.cuts:
            drawn.append(row)
        else:
            tokens[row] = chooser.choose(logits_RV[row], position=positions[row])
    vocab_size = choosers[0].vocab_size
    if greedy:
        logits = logits_RV[greedy, :vocab_size]
        _check_finite(logits.max(axis=1).sum())
        for row, token in zip(greedy, logits.argmax(axis=1).tolist(), strict=True):
            tokens[row] = token
    if drawn:
        weights = logits_RV[drawn, :vocab_size].astype(np.float64)
        largest = weights.max(axis=1, keepdims=True)
        _check_finite(largest.sum())
        weights -= largest
        weights /= np.array([[choosers[row].sampling.temperature] for row in drawn])
        np.exp(weights, out=weights)
        for row, weights_V in zip(drawn, weights, strict=True):
            tokens[row] = _draw(weights_V, choosers[row].sampling, positions[row])
    return tokens


def log_probabilities(logits_V: np.ndarray) -> np.ndarray:
    """The model's own log-probabilities, before any rule, (V,) float64 in nats."""
    logits = logits_V.astype(np.float64)
    logits -= logits.max()
    return logits - math.log(np.exp(logits).sum())


def _draw(weights: np.ndarray, sampling: Sampling, position: int, purpose: str = "sample") -> int:
    """The first token whose cumulative weight exceeds the noise of this position."""
    cumulative = np.add.accumulate(weights)
    # Scaled by the sum, the draw stays below the last step; counting the steps at or below it never lands on a token
    # of probability zero.
    return int(cumulative.searchsorted(_noise(sampling, position, purpose) * cumulative[-1], side="right"))


def _noise(sampling: Sampling, position: int, purpose: str) -> float:
    """In [0, 1), and a function of these alone."""
    return uniform_at(key(sampling.seed, purpose, position), sampling.row)


def _check_finite(value: float) -> None:
    """Of the largest logit: it is NaN if any is, and infinite if all hope is lost."""
    if not math.isfinite(value):
        raise GenerateError("the model's logits are not finite: its training diverged; use an earlier checkpoint")

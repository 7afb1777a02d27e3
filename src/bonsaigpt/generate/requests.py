"""What a session is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bonsaigpt.errors import GenerateError
from bonsaigpt.generate.context import Overflow
from bonsaigpt.sampling import Pattern, Sampling, log_probabilities

__all__ = ["Completion", "Event", "Finish", "LogProb", "Request"]

Finish = Literal["length", "stop_string", "stop_token", "complete", "incomplete", "stuck", "cancelled", "failed"]
"""Why a text ended: ``max_tokens`` were made; a stop string or token came; the pattern is complete and the model would
go elsewhere; ``max_tokens`` came before the pattern was complete; no token can go on with the pattern; cancelled;
something went wrong (``Event.error``)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to continue."""

    prompt: Sequence[int]
    """Its token ids, at least one."""
    max_tokens: int
    """New tokens at most."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    """The text ends where one of these would begin; needs a tokenizer."""
    stop_tokens: Sequence[int] = ()
    """The text ends before one of these."""
    logprobs: int | None = None
    """Report the log-probability of each token and of so many likeliest ones, by the model's own distribution before
    all rules of sampling."""
    overflow: Overflow = "slide"
    """What to do past the block size; see ``context.py``."""
    slide: int | None = None
    """Tokens dropped at once under ``slide``; none means an eighth of the block."""
    pattern: Pattern | None = None
    """What the new text must match as a whole."""

    def __post_init__(self) -> None:
        if any(not stop for stop in self.stop):
            raise GenerateError("an empty stop string would end every text at once: leave it out")
        if self.logprobs is not None and self.logprobs < 0:
            raise GenerateError(f"the {self.logprobs} likeliest tokens cannot be reported: ask for 0 or more")


@dataclass(frozen=True)
class LogProb:
    """A token as the model saw it before the rules of sampling."""

    token: int
    logprob: float
    """Of this token, in nats."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, the likeliest first."""

    @classmethod
    def of(cls, logits_V: np.ndarray, token: int, top: int) -> LogProb:
        """A token by the logits before it, and so many likeliest ones, of equals the first."""
        logprobs = log_probabilities(logits_V)
        best: list[int] = []
        if top:
            least = np.partition(logprobs, -top)[-top] if top < len(logprobs) else -np.inf
            near = (logprobs >= least).nonzero()[0]  # a vocabulary of 50,000 is not sorted whole
            best = near[np.argsort(-logprobs[near], kind="stable")][:top].tolist()
        return cls(token, float(logprobs[token]), tuple((i, float(logprobs[i])) for i in best))


@dataclass(frozen=True)
class Event:
    """Something that happened to one request."""

    request: int
    """Its number, as ``Session.add`` gave it."""
    token: int | None = None
    """The token that was chosen, a stop token too; none if the text ended without one."""
    piece: str = ""
    """Text that is certain now."""
    logprob: LogProb | None = None
    finish: Finish | None = None
    """The last event of a request says why it ended."""
    error: str | None = None
    """What went wrong, of a request that failed."""

    def check(self) -> None:
        """Raise ``GenerateError`` if the request failed."""
        if self.error is not None:
            raise GenerateError(self.error)


@dataclass
class Completion:
    """All that became of one request."""

    request: int
    tokens: list[int] = field(default_factory=list)
    """Every token chosen, those of a stop string or a stop token too."""
    text: str = ""
    logprobs: list[LogProb] = field(default_factory=list)
    finish: Finish | None = None

    def take(self, event: Event) -> None:
        """Add what an event brings."""
        if event.token is not None:
            self.tokens.append(event.token)
        self.text += event.piece
        if event.logprob is not None:
            self.logprobs.append(event.logprob)
        self.finish = event.finish

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of a token, in nats; needs ``Request.logprobs``. None if there is no token."""
        return sum(p.logprob for p in self.logprobs) / len(self.logprobs) if self.logprobs else None

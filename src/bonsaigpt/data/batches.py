"""A batch, and what the training loop needs to know of whatever makes batches.

A batch is a function ``batch_at(step)`` of the data and the seed: a sample has a global number (``data/plan.py``), and
its content follows from that number alone. So a resumed run sees what an uninterrupted one would, evaluation cannot
disturb training, and the stream of samples does not depend on how many processes share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from bonsaigpt.data.tokenizers import Tokenizer

__all__ = ["IGNORE", "Batch", "BatchSource"]

IGNORE = -1
"""Target of a position that does not count in the loss."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on the host."""

    tokens_BT: np.ndarray
    """Inputs, int64."""
    targets_BT: np.ndarray
    """What should come next at each position, int64; IGNORE where nothing is asked."""
    count: int
    """Number of targets that count; in a part (see ``part``) that of the whole batch."""
    reset_B: np.ndarray | None = None
    """Order `streams`: True where the row starts a text anew, so that carried state must be dropped."""
    documents_BT: np.ndarray | None = None
    """Which document of its row a position belongs to, int32, numbered upwards along the row: attention stays inside
    it, and positions start anew with it. None: the whole row may be attended to."""
    weights_BT: np.ndarray | None = None
    """What a target's loss is multiplied with in the objective, float32; negative ones make it less likely. None: 1."""

    def part(self, rank: int, size: int) -> Batch:
        """The consecutive rows that one of ``size`` processes takes; ``count`` stays that of the whole batch."""
        total = len(self.tokens_BT)
        return self._each(lambda array, _: array[total * rank // size : total * (rank + 1) // size])

    def share(self, rank: int, size: int) -> Batch:
        """``part``, filled with rows that ask nothing where it is shorter than that of another process: so all
        processes take equally many passes of equal shapes."""
        part = self.part(rank, size)
        missing = math.ceil(len(self.tokens_BT) / size) - len(part.tokens_BT)
        if missing == 0:
            return part
        return part._each(
            lambda array, filler: np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)], constant_values=filler)
        )

    def first(self, rows: int) -> Batch:
        """The first rows alone, as a batch of their own."""
        cut = self._each(lambda array, _: array[:rows])
        return replace(cut, count=int((cut.targets_BT != IGNORE).sum()))

    def recut(self, context: int) -> Batch:
        """The same tokens in rows of another length, a divisor of the present one."""
        if context == self.tokens_BT.shape[1]:
            return self
        return replace(self, reset_B=None)._each(lambda array, _: array.reshape(-1, context))

    def _each(self, change: Callable[[np.ndarray, int], np.ndarray]) -> Batch:
        return replace(
            self,
            tokens_BT=change(self.tokens_BT, 0),
            targets_BT=change(self.targets_BT, IGNORE),
            reset_B=None if self.reset_B is None else change(self.reset_B, 0),
            documents_BT=None if self.documents_BT is None else change(self.documents_BT, 0),
            weights_BT=None if self.weights_BT is None else change(self.weights_BT, 0),
        )


class BatchSource(Protocol):
    """What the training loop needs to know of data."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What the ids mean."""
        ...

    @property
    def exact_match(self) -> bool:
        """Whether a row counts as solved only if every target is right (toys with an answer)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever a batch would."""
        ...

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        """Of a mixture its parts by name, each with its share of the samples; of anything else none."""
        ...

    def batch_at(self, step: int) -> Batch:
        """The batch of optimizer step ``step``: a pure function."""
        ...

    def reordered(self, attempt: int) -> Self:
        """The same data in another order, for a run that went back after trouble; ``attempt`` counts from 1."""
        ...

    def passes(self, positions: int) -> Mapping[str, float]:
        """How often each token of each training text is seen in so many positions; empty where data are made anew."""
        ...

    def validation(self) -> Iterator[Batch]:
        """The whole validation split, in a fixed order."""
        ...

    def validation_count(self) -> int:
        """Number of targets of the validation split."""
        ...

    def validation_bytes(self) -> int:
        """Bytes of text that the validation targets stand for; 0 if they are no text."""
        ...

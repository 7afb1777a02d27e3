"""``batch_at(step)``: index arithmetic from (data, seed, step) to one batch, for three orders.

A sample has a global number (``data/plan.py``), and its place in the text follows from that number alone.
So a resumed run sees what an uninterrupted one would, evaluation cannot disturb training, and the stream of samples
does not depend on how many processes share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.randomness import hash64, key, permute

__all__ = ["IGNORE", "Batch", "BatchSource", "TokenBatches"]

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

    def _each(self, change: Callable[[np.ndarray, int], np.ndarray]) -> Batch:
        return replace(
            self,
            tokens_BT=change(self.tokens_BT, 0),
            targets_BT=change(self.targets_BT, IGNORE),
            reset_B=None if self.reset_B is None else change(self.reset_B, 0),
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

    def batch_at(self, step: int) -> Batch:
        """The batch of optimizer step ``step``: a pure function."""
        ...

    def reordered(self, attempt: int) -> Self:
        """The same data in another order, for a run that went back after trouble; ``attempt`` counts from 1."""
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


@dataclass(frozen=True, kw_only=True)
class TokenBatches:
    """Batches over a train and a validation stream of token ids, (N,) unsigned integers, memory-mapped or not."""

    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer
    order: str
    seed: int
    plan: BatchPlan
    fingerprint: str
    eval_block_size: int | None = None
    """Length of the windows of the validation split; None means block_size."""
    exact_match: bool = False

    @property
    def batch_size(self) -> int:
        """Windows in a step once any ramp is over."""
        return self.plan.batch_size

    @property
    def block_size(self) -> int:
        """Tokens in a window."""
        return self.plan.block_size

    def __post_init__(self) -> None:
        for split, tokens in (("training", self.train), ("validation", self.val)):
            if len(tokens) < self.block_size + 1:
                raise DataError(
                    f"the {split} split has {len(tokens)} tokens, but model.block_size = {self.block_size} needs at "
                    f"least {self.block_size + 1}: use a smaller block size or more text"
                )
        if self.order == "streams" and self._segments < 1:
            raise DataError(
                f"data.order = 'streams' cuts {len(self.train)} tokens into train.batch_size = {self.batch_size} "
                f"streams, shorter than one block of {self.block_size}: use a smaller batch or block"
            )

    @property
    def windows(self) -> int:
        """Windows in an epoch of order `shuffled`; one is given up so that each epoch can shift its grid."""
        return max(1, (len(self.train) - 1) // self.block_size - 1)

    @property
    def _segments(self) -> int:
        return (len(self.train) - 1) // self.batch_size // self.block_size

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Where in the training stream the samples with these global numbers start, (n,) int64."""
        if self.order == "random":
            draws = hash64(key(self.seed, "random"), samples)
            return (draws % np.uint64(len(self.train) - self.block_size)).astype(np.int64)
        if self.order == "streams":
            step, row = np.divmod(samples, self.batch_size)
            stream = (len(self.train) - 1) // self.batch_size
            return row * stream + step % self._segments * self.block_size
        epochs, inside = np.divmod(samples, self.windows)
        starts = np.empty(len(samples), dtype=np.int64)
        slack = len(self.train) - 1 - self.windows * self.block_size
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            window = permute(key(self.seed, "shuffled", epoch), inside[here], self.windows)
            # The grid of windows starts elsewhere in each epoch, so that every token is predicted from every depth.
            phase = key(self.seed, "phase", epoch) % (slack + 1)
            starts[here] = phase + window * self.block_size
        return starts

    def batch_at(self, step: int) -> Batch:
        reset = None
        if self.order == "streams":
            reset = np.full(self.batch_size, step % self._segments == 0)
        batch = self._windows(self.train, self.starts(self.plan.samples(step)), self.block_size, reset)
        context = self.plan.context(step)
        if context == self.block_size:
            return batch
        return Batch(
            tokens_BT=batch.tokens_BT.reshape(-1, context),
            targets_BT=batch.targets_BT.reshape(-1, context),
            count=batch.count,
        )

    def reordered(self, attempt: int) -> TokenBatches:
        return replace(self, seed=key(self.seed, "reordered", attempt))

    def _windows(self, stream: np.ndarray, starts: np.ndarray, length: int, reset: np.ndarray | None = None) -> Batch:
        cut = stream[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        return Batch(
            tokens_BT=cut[:, :-1],
            targets_BT=cut[:, 1:],
            count=len(starts) * length,
            reset_B=reset,
        )

    def validation(self) -> Iterator[Batch]:
        """Consecutive windows over the whole split; each token but the first is predicted exactly once."""
        length = self.eval_block_size or self.block_size
        total = len(self.val) - 1
        whole = total // length
        rows = max(1, 16384 // length)  # a bound on memory, not a setting: the result does not depend on it
        for first in range(0, whole, rows):
            yield self._windows(self.val, np.arange(first, min(first + rows, whole)) * length, length)
        if rest := total - whole * length:
            cut = self.val[whole * length :].astype(np.int64)
            yield Batch(tokens_BT=cut[None, :-1], targets_BT=cut[None, 1:], count=rest)

    def validation_count(self) -> int:
        return len(self.val) - 1

    def validation_bytes(self) -> int:
        lengths = self.tokenizer.token_bytes()
        slices = (self.val[i : i + 2**20] for i in range(1, len(self.val), 2**20))  # a cast of all would be 8 times it
        return sum(int(lengths[part].sum()) for part in slices)

"""Batches of windows of a token stream, in the orders `shuffled`, `streams`, `random` and `packed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.packing import PackedRows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.randomness import hash64, key, permute

__all__ = ["TokenBatches"]

_STREAMS = 16
"""Into which the validation split is cut to be scored with a memory: as many rows start with an empty one."""


@dataclass(frozen=True, kw_only=True)
class TokenBatches:
    """Batches over a train and a validation stream of token ids."""

    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer
    order: str
    seed: int
    plan: BatchPlan
    fingerprint: str
    eval_block_size: int | None = None
    """Length of the windows of the validation split; None means block_size."""
    document_mask: bool = False
    """Whether attention stays inside a document; the tokenizer has an end-of-text token then."""
    packed: PackedRows | None = None
    """The rows of order `packed`."""
    exact_match: bool = False

    @property
    def batch_size(self) -> int:
        """Windows in a step once any ramp is over."""
        return self.plan.batch_size

    @property
    def block_size(self) -> int:
        """Tokens in a window."""
        return self.plan.block_size

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        return {}

    def __post_init__(self) -> None:
        for split, tokens in (("training", self.train), ("validation", self.val)):
            least = 2 if self.order == "packed" else self.block_size + 1
            if len(tokens) < least:
                raise DataError(
                    f"the {split} split has {len(tokens)} tokens, but model.block_size = {self.block_size} needs at "
                    f"least {least}: use a smaller block size or more text"
                )
        if self.order == "streams" and self._segments < 1:
            raise DataError(
                f"data.order = 'streams' cuts {len(self.train)} tokens into train.batch_size = {self.batch_size} "
                f"streams, shorter than one block of {self.block_size}: use a smaller batch or block"
            )

    @property
    def windows(self) -> int:
        """Samples in an epoch. Of order `shuffled` one is given up so that each epoch can shift its grid."""
        if self.packed is not None:
            return self.packed.count
        return max(1, (len(self.train) - 1) // self.block_size - 1)

    @property
    def _segments(self) -> int:
        return (len(self.train) - 1) // self.batch_size // self.block_size

    def passes(self, positions: int) -> Mapping[str, float]:
        epoch = self.windows * self.block_size if self.packed is not None else len(self.train)
        return {"the training text": positions / epoch}

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
        starts = self._shuffled(epochs, inside) * self.block_size
        slack = len(self.train) - 1 - self.windows * self.block_size
        for epoch in np.unique(epochs).tolist():
            # The grid of windows starts elsewhere in each epoch, so that every token is predicted from every depth.
            starts[epochs == epoch] += key(self.seed, "phase", epoch) % (slack + 1)
        return starts

    def _shuffled(self, epochs: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Which window each sample is: a permutation of its own in each epoch, computed in O(1) memory."""
        numbers = np.empty(len(epochs), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = permute(key(self.seed, "shuffled", epoch), inside[here], self.windows)
        return numbers

    def rows_at(self, samples: np.ndarray) -> Batch:
        """The samples with these global numbers, one a row."""
        if self.packed is not None:
            numbers = self._shuffled(*np.divmod(samples, self.windows))
            return self.packed.batch(numbers, self.train, document_mask=self.document_mask)
        batch = self._cut(self.train, self.starts(samples), self.block_size)
        if self.order == "streams":
            return replace(batch, reset_B=samples // self.batch_size % self._segments == 0)
        return batch

    def batch_at(self, step: int) -> Batch:
        return self.rows_at(self.plan.samples(step)).recut(self.plan.context(step))

    def reordered(self, attempt: int) -> TokenBatches:
        return replace(self, seed=key(self.seed, "reordered", attempt))

    def _cut(self, stream: TokenStream, starts: np.ndarray, length: int) -> Batch:
        cut = stream.gather(starts, length + 1)
        tokens_BT, documents_BT = cut[:, :-1], None
        if self.document_mask:
            # The end-of-text token before a document belongs to it: the document's first token is predicted from it.
            documents_BT = np.cumsum(tokens_BT == self.tokenizer.end_of_text, axis=1, dtype=np.int32)
        return Batch(tokens_BT=tokens_BT, targets_BT=cut[:, 1:], count=len(starts) * length, documents_BT=documents_BT)

    def validation(self) -> Iterator[Batch]:
        """Consecutive windows over the whole split; each token but the first is predicted exactly once."""
        length = self.eval_block_size or self.block_size
        total = len(self.val) - 1
        whole = total // length
        rows = max(1, 16384 // length)  # a bound on memory, not a setting: the result does not depend on it
        for first in range(0, whole, rows):
            yield self._cut(self.val, np.arange(first, min(first + rows, whole)) * length, length)
        if rest := total - whole * length:
            yield self._cut(self.val, np.array([whole * length]), rest)

    def validation_streams(self) -> Iterator[Batch]:
        """The split as a few long streams side by side, in segments of a block; what is left of it as one more."""
        total = len(self.val) - 1
        rows = max(1, min(_STREAMS, total // self.block_size))
        stream = total // rows
        starts = np.arange(rows) * stream
        for place in range(0, stream, self.block_size):
            batch = self._cut(self.val, starts + place, min(self.block_size, stream - place))
            yield replace(batch, reset_B=np.ones(rows, dtype=bool) if place == 0 else None)
        if rest := total - rows * stream:
            yield replace(self._cut(self.val, np.array([rows * stream]), rest), reset_B=np.ones(1, dtype=bool))

    def validation_count(self) -> int:
        return len(self.val) - 1

    def validation_bytes(self) -> int:
        lengths = self.tokenizer.token_bytes()
        return sum(int(lengths[part].sum()) for _, part in self.val.pieces(start=1))

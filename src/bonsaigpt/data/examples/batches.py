"""Batches of examples: rows filled with whole ones, an epoch after the other, and a fixed set to validate on.

Rows are filled once, by best fit (see ``data/packing.py``); each epoch takes them in an order of its own, computed from
(seed, epoch). A row's examples do not attend to each other and each starts at position 0, so what a packed example
costs is what it costs alone. When validating each has a row of its own: there a row is right or wrong as a whole, and
with every target the first choice, decoding greedily would have given exactly that answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bonsaigpt.data.batches import IGNORE, Batch, BatchSource
from bonsaigpt.data.examples.encoding import Encoded
from bonsaigpt.data.packing import best_fit
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.randomness import key, permute

__all__ = ["ExampleBatches", "by_length", "shown_equally"]

_WINDOW = 4096
"""Examples that are packed at once."""
_TOKENS = 16384
"""Positions of a batch of the validation at most, so far as one example is no longer: a bound on memory."""


@dataclass(frozen=True, kw_only=True)
class ExampleBatches:
    """Batches over examples to train on and others to validate on."""

    train: Encoded
    val: Encoded
    tokenizer: Tokenizer
    seed: int
    plan: BatchPlan
    fingerprint: str
    pack: bool = True
    shown: np.ndarray
    """Numbers of the training examples that an epoch shows."""
    exact_match: bool = True
    """Whether there are answers that can be right or wrong."""

    @classmethod
    def of(
        cls,
        train: Encoded,
        val: Encoded,
        *,
        about: str,
        tokenizer: Tokenizer,
        seed: int,
        plan: BatchPlan,
        pack: bool,
        shown: np.ndarray | None = None,
        exact_match: bool = True,
    ) -> ExampleBatches:
        """The batches of two sides.

        Args:
            about: whatever else a batch depends on, for the fingerprint.
            shown: None: every training example once in an epoch.
        """
        digest = hashlib.sha256(f"{about} {tokenizer.to_json()}".encode())
        for side in (train, val):
            digest.update(side.ids.tobytes() + side.asked.tobytes())
        return cls(
            train=train,
            val=val,
            tokenizer=tokenizer,
            seed=seed,
            plan=plan,
            fingerprint=f"examples-{digest.hexdigest()[:16]}-{seed}-{plan.batch_size}",
            pack=pack,
            shown=np.arange(len(train)) if shown is None else shown,
            exact_match=exact_match,
        )

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        return {}

    @property
    def end_of_text(self) -> int:
        """Fills what stays empty."""
        assert self.tokenizer.end_of_text is not None  # it was encoded with
        return self.tokenizer.end_of_text

    @cached_property
    def rows(self) -> list[list[int]]:
        """Which examples share a row."""
        shown = self.shown[permute(key(self.seed, "packing"), np.arange(len(self.shown)), len(self.shown))]
        if not self.pack:
            return [[number] for number in shown.tolist()]
        found: list[list[int]] = []
        for first in range(0, len(shown), _WINDOW):
            window = shown[first : first + _WINDOW]
            bins = best_fit(self.train.lengths[window].tolist(), self.plan.block_size)
            found += [[int(window[number]) for number in row] for row in bins]
        return found

    @property
    def row_length(self) -> int:
        """Positions of a row: a block where it is packed, else as many as the longest example takes."""
        return self.plan.block_size if self.pack else int(self.train.lengths.max())

    def batch_at(self, step: int) -> Batch:
        epochs, inside = np.divmod(self.plan.samples(step), len(self.rows))
        numbers = inside.copy()
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = permute(key(self.seed, "examples", epoch), inside[here], len(self.rows))
        return self.rows_of(self.train, [self.rows[n] for n in numbers.tolist()], self.row_length, masked=self.pack)

    def rows_of(self, encoded: Encoded, rows: Sequence[Sequence[int]], length: int, *, masked: bool = False) -> Batch:
        """Rows with these examples, filled up to a length."""
        shape = len(rows), length
        tokens_BT, targets_BT = np.full(shape, self.end_of_text, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        documents_BT = np.zeros(shape, dtype=np.int32)
        for row, numbers in enumerate(rows):
            at = 0
            for document, number in enumerate(numbers):
                ids, asked = encoded.example(number)
                here = slice(at, at + len(ids) - 1)
                tokens_BT[row, here], documents_BT[row, here] = ids[:-1], document
                targets_BT[row, here] = np.where(asked[1:], ids[1:], IGNORE)
                at = here.stop
            documents_BT[row, at:] = len(numbers)
        count = int((targets_BT != IGNORE).sum())
        documents = documents_BT if masked else None
        return Batch(tokens_BT=tokens_BT, targets_BT=targets_BT, count=count, documents_BT=documents)

    def reordered(self, attempt: int) -> ExampleBatches:
        return replace(self, seed=key(self.seed, "reordered", attempt))

    def passes(self, positions: int) -> Mapping[str, float]:
        return {"the examples": positions / (len(self.rows) * self.row_length)}

    def validation(self) -> Iterator[Batch]:
        """All examples, one a row, the shortest first: rows of a batch are nearly of one length."""
        for numbers, length in by_length(self.val.lengths):
            yield self.rows_of(self.val, [[number] for number in numbers], length)

    def validation_count(self) -> int:
        return int(self.val.asked.sum())

    def validation_bytes(self) -> int:
        return int(self.tokenizer.token_bytes()[self.val.ids[self.val.asked]].sum())


def by_length(lengths: np.ndarray) -> Iterator[tuple[list[int], int]]:
    """All examples in batches of bounded size, the shortest first: their numbers, and the length of the longest."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and lengths[order[last]] * (last + 1 - first) <= _TOKENS:
            last += 1
        yield order[first:last].tolist(), int(lengths[order[last - 1]])
        first = last


def shown_equally(completions: Sequence[str]) -> np.ndarray:
    """Numbers of examples such that every completion comes equally often: as often as the most frequent one, whose
    examples come once each; those of the others come again in their order."""
    of: dict[str, list[int]] = {}
    for number, completion in enumerate(completions):
        of.setdefault(completion, []).append(number)
    most = max(map(len, of.values()))
    return np.concatenate([np.resize(np.array(numbers), most) for numbers in of.values()])

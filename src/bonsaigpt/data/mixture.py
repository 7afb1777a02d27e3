"""A mixture: each sample comes from one of several corpora, in exact proportions.

Which part a sample comes from follows from its number alone. Shares are fractions, so the pattern repeats after as many
samples as their common denominator, and one period is laid out like the turns of chairmen (Tijdeman 1980, "The chairman
assignment problem"): the k-th sample of a part with share w falls between the samples floor((k - 1) / w) and
ceil(k / w), always the one whose time runs out first. So after any number n of samples no part is off from w n by a
whole sample, and a part's own samples are numbered without a gap: it goes through its corpus as if it were alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np

from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import ConfigError, DataError

__all__ = ["MixtureBatches", "Turns"]

_LONGEST = 100_000
"""Samples in a period at most: it is laid out in memory."""


class Turns:
    """Whose turn each sample is."""

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]  # 0.3 means 3/10, not the nearest binary number
        shares = [weight / sum(exact) for weight in exact]
        self.period = math.lcm(*(share.denominator for share in shares))
        if self.period > _LONGEST:
            raise ConfigError(
                f"the weights {', '.join(map(str, weights))} repeat after {self.period:,} samples only, and "
                f"{_LONGEST:,} are the most: give rounder ones, e.g. whole numbers"
            )
        self.turns = [int(share * self.period) for share in shares]
        """Samples of each part in a period."""
        self._part, self._before = self._lay_out()

    def _lay_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each sample of a period its part, and how many samples that part had before."""
        part, before = np.empty(self.period, dtype=np.int64), np.empty(self.period, dtype=np.int64)
        had = [0] * len(self.turns)
        for sample in range(self.period):
            released = (
                (-(-(had[i] + 1) * self.period // turns), i)
                for i, turns in enumerate(self.turns)
                if had[i] < turns and had[i] * self.period // turns <= sample
            )
            chosen = min(released)[1]
            part[sample], before[sample] = chosen, had[chosen]
            had[chosen] += 1
        return part, before

    def of(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each sample, and its number among that part's samples."""
        period, inside = np.divmod(samples, self.period)
        part = self._part[inside]
        return part, period * np.array(self.turns)[part] + self._before[inside]


@dataclass(frozen=True, kw_only=True)
class MixtureBatches:
    """Batches of several sources over one tokenizer. Each part keeps its own order, epochs and validation split."""

    members: Mapping[str, TokenBatches]
    weights: tuple[float, ...]
    plan: BatchPlan
    exact_match: bool = False

    def __post_init__(self) -> None:
        (first, one), *others = self.members.items()
        for name, other in others:
            if other.tokenizer.to_json() != one.tokenizer.to_json():
                raise DataError(
                    f"the parts '{first}' and '{name}' of the mixture have different tokenizers "
                    f"({_words(one.tokenizer)}; {_words(other.tokenizer)}), so their ids mean different text: give all "
                    "parts one tokenizer that does not depend on the text, e.g. tokenizer.kind = 'bytes' or 'gpt2'"
                )

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self.weights)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of all parts."""
        return next(iter(self.members.values())).tokenizer

    @property
    def fingerprint(self) -> str:
        """Over those of the parts and the proportions."""
        words = [f"{m.fingerprint} {turns}" for m, turns in zip(self.members.values(), self._turns.turns, strict=True)]
        return f"mixture-{hashlib.sha256(' '.join(words).encode()).hexdigest()}"

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        shares = [turns / self._turns.period for turns in self._turns.turns]
        return {name: (share, part) for share, (name, part) in zip(shares, self.members.items(), strict=True)}

    def passes(self, positions: int) -> Mapping[str, float]:
        return {
            name: seen
            for name, (share, part) in self.parts.items()
            for seen in part.passes(round(share * positions)).values()
        }

    def batch_at(self, step: int) -> Batch:
        parts, numbers = self._turns.of(self.plan.samples(step))
        found = [(parts == i, part) for i, part in enumerate(self.members.values()) if (parts == i).any()]
        batches = [(here, part.rows_at(numbers[here])) for here, part in found]
        shape = len(parts), self.plan.block_size
        tokens_BT, targets_BT = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        documents_BT = np.zeros(shape, dtype=np.int32)  # a part without a mask is one document
        for here, batch in batches:
            tokens_BT[here], targets_BT[here] = batch.tokens_BT, batch.targets_BT
            if batch.documents_BT is not None:
                documents_BT[here] = batch.documents_BT
        masked = any(part.document_mask for part in self.members.values())
        return Batch(
            tokens_BT=tokens_BT,
            targets_BT=targets_BT,
            count=sum(batch.count for _, batch in batches),
            documents_BT=documents_BT if masked else None,
        ).recut(self.plan.context(step))

    def reordered(self, attempt: int) -> MixtureBatches:
        return replace(self, members={name: part.reordered(attempt) for name, part in self.members.items()})

    def validation(self) -> Iterator[Batch]:
        for part in self.members.values():
            yield from part.validation()

    def validation_count(self) -> int:
        return sum(part.validation_count() for part in self.members.values())

    def validation_bytes(self) -> int:
        return sum(part.validation_bytes() for part in self.members.values())


def _words(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.kind}, {tokenizer.vocab_size} tokens"

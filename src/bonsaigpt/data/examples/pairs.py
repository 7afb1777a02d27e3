"""Pairs of answers to one prompt, of which one was chosen: two rows beside each other, the chosen one first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bonsaigpt.config import PairsData
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.examples import split_examples
from bonsaigpt.data.examples.batches import ExampleBatches
from bonsaigpt.data.examples.encoding import Encoded, encode_examples, tokenizer_for
from bonsaigpt.data.examples.reading import Example, example_of, read_records
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Say, silent
from bonsaigpt.randomness import key, permute

__all__ = ["PairBatches", "are_pairs", "pair_batches"]


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs. Rows come from examples, one a row: the answers that were chosen, and those that were not."""

    chosen: ExampleBatches
    rejected: Encoded
    seed: int
    exact_match: bool = True

    @property
    def tokenizer(self) -> Tokenizer:
        return self.chosen.tokenizer

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        return {}

    @property
    def fingerprint(self) -> str:
        return self.chosen.fingerprint

    @property
    def pairs(self) -> int:
        """Of a step."""
        return self.chosen.plan.batch_size // 2

    def batch_at(self, step: int) -> Batch:
        total = len(self.rejected)
        epochs, inside = np.divmod(np.arange(step * self.pairs, (step + 1) * self.pairs), total)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            inside[here] = permute(key(self.seed, "pairs", epoch), inside[here], total)
        rows = [[number] for number in inside.tolist()]
        length = int(max(self.chosen.train.lengths.max(), self.rejected.lengths.max()))
        one, other = (self.chosen.rows_of(side, rows, length) for side in (self.chosen.train, self.rejected))

        def woven(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.stack([a, b], axis=1).reshape(-1, a.shape[1])

        return Batch(
            tokens_BT=woven(one.tokens_BT, other.tokens_BT),
            targets_BT=woven(one.targets_BT, other.targets_BT),
            count=one.count + other.count,
        )

    def reordered(self, attempt: int) -> PairBatches:
        return replace(self, seed=key(self.seed, "reordered", attempt))

    def passes(self, positions: int) -> Mapping[str, float]:
        return {"the pairs": positions / self.chosen.plan.block_size / 2 / len(self.rejected)}

    def validation(self) -> Iterator[Batch]:
        return self.chosen.validation()

    def validation_count(self) -> int:
        return self.chosen.validation_count()

    def validation_bytes(self) -> int:
        return self.chosen.validation_bytes()


def pair_batches(
    config: PairsData, *, seed: int, plan: BatchPlan, say: Say = silent, tokenizer: Tokenizer | None = None
) -> PairBatches:
    """The batches of a file of pairs.

    Raises:
        DataError: a file that cannot be read, a line that is no pair, or nothing left to train or to validate on.
    """
    chosen = _side(config.path, "chosen")
    if config.val is None:
        train, val = split_examples(chosen, config.val_fraction)
    else:
        train, val = chosen, _side(config.val, "chosen")
    if not train or not val:
        raise DataError(
            f"{config.path} leaves no pair to {'validate' if train else 'train'} on: give more, or data.val"
        )
    rejected = [example_of(example.record, "{prompt}{rejected}", str(config.path)) for example in train]
    tokenizer = tokenizer or tokenizer_for(config.tokenizer, [*train, *rejected])
    sides = [encode_examples(side, tokenizer, block_size=plan.block_size) for side in (train, val, rejected)]
    say(f"{len(train):,} pairs to train on, {len(val):,} to validate on")
    digest = hashlib.sha256(tokenizer.to_json().encode())
    for side in sides:
        digest.update(side.ids.tobytes() + side.asked.tobytes())
    examples = ExampleBatches(
        train=sides[0],
        val=sides[1],
        tokenizer=tokenizer,
        seed=seed,
        plan=plan,
        fingerprint=f"pairs-{digest.hexdigest()[:16]}-{seed}-{plan.batch_size}",
        pack=False,
        shown=np.arange(len(sides[0])),
        exact_match=True,
    )
    return PairBatches(examples, sides[2], seed)


def are_pairs(path: Path) -> bool:
    """Whether a file's first line has an answer that was chosen and one that was rejected.

    Raises:
        DataError: it cannot be read, or has no line.
    """
    return read_records(path)[0][1].keys() >= {"chosen", "rejected"}


def _side(path: Path, field: str) -> Sequence[Example]:
    return [example_of(record, "{prompt}{" + field + "}", where) for where, record in read_records(path)]

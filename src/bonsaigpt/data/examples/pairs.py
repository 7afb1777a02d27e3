"""Pairs of answers to one prompt, of which one was chosen: two rows beside each other, the chosen one first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bonsaigpt.config import PairsData
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.examples import two_sides
from bonsaigpt.data.examples.batches import ExampleBatches, by_length
from bonsaigpt.data.examples.encoding import Encoded, encode_examples, tokenizer_for
from bonsaigpt.data.examples.reading import CHOSEN, REJECTED, Example, example_of, read_records
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Say, silent
from bonsaigpt.randomness import key, permute

__all__ = ["PairBatches", "are_pairs", "pair_batches"]


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs. Rows come from examples, one a row: the answers that were chosen, and those that were not. The
    loss that is validated is that of the chosen ones."""

    chosen: ExampleBatches
    rejected: ExampleBatches
    seed: int
    exact_match: bool = True

    def __len__(self) -> int:
        """Pairs to train on."""
        return len(self.chosen.train)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.chosen.tokenizer

    @property
    def parts(self) -> Mapping[str, tuple[float, BatchSource]]:
        return {}

    @property
    def fingerprint(self) -> str:
        return f"pairs of {self.chosen.fingerprint} and {self.rejected.fingerprint}"

    @property
    def pairs(self) -> int:
        """Of a step."""
        return self.chosen.plan.batch_size // 2

    def batch_at(self, step: int) -> Batch:
        epochs, inside = np.divmod(np.arange(step * self.pairs, (step + 1) * self.pairs), len(self))
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            inside[here] = permute(key(self.seed, "pairs", epoch), inside[here], len(self))
        chosen, rejected = self.chosen.train, self.rejected.train
        length = int(max(chosen.lengths.max(), rejected.lengths.max()))
        return self._rows_of(chosen, rejected, inside.tolist(), length)

    def reordered(self, attempt: int) -> PairBatches:
        return replace(self, seed=key(self.seed, "reordered", attempt))

    def passes(self, positions: int) -> Mapping[str, float]:
        return {"the pairs": positions / self.chosen.plan.block_size / 2 / len(self)}

    def validation(self) -> Iterator[Batch]:
        return self.chosen.validation()

    def validation_count(self) -> int:
        return self.chosen.validation_count()

    def validation_bytes(self) -> int:
        return self.chosen.validation_bytes()

    def validation_pairs(self) -> Iterator[Batch]:
        """All pairs to validate on, in a fixed order, as rows beside each other."""
        chosen, rejected = self.chosen.val, self.rejected.val
        for numbers, length in by_length(np.maximum(chosen.lengths, rejected.lengths)):
            yield self._rows_of(chosen, rejected, numbers, length)

    def _rows_of(self, chosen: Encoded, rejected: Encoded, numbers: Sequence[int], length: int) -> Batch:
        rows = [[number] for number in numbers]
        one, other = (self.chosen.rows_of(side, rows, length) for side in (chosen, rejected))

        def woven(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.stack([a, b], axis=1).reshape(-1, length)

        return Batch(
            tokens_BT=woven(one.tokens_BT, other.tokens_BT),
            targets_BT=woven(one.targets_BT, other.targets_BT),
            count=one.count + other.count,
        )


def pair_batches(
    config: PairsData, *, seed: int, plan: BatchPlan, say: Say = silent, tokenizer: Tokenizer | None = None
) -> PairBatches:
    """The batches of a file of pairs.

    Raises:
        DataError: a file that cannot be read, a line that is no pair, or nothing left to train or to validate on.
    """
    train, val = two_sides(config, _chosen(config.path), _chosen(config.val) if config.val is not None else None)
    of_train, of_val = _rejected(train, config.path), _rejected(val, config.val or config.path)
    tokenizer = tokenizer or tokenizer_for(config.tokenizer, [*train, *of_train])
    say(f"{len(train):,} pairs to train on, {len(val):,} to validate on")
    chosen, rejected = (
        ExampleBatches.of(
            *(_encoded(side, tokenizer, plan.block_size) for side in sides),
            about=str(plan.block_size),
            tokenizer=tokenizer,
            seed=seed,
            plan=plan,
            pack=False,
        )
        for sides in ((train, val), (of_train, of_val))
    )
    return PairBatches(chosen, rejected, seed)


def are_pairs(path: Path) -> bool:
    """Whether a file has answers that were chosen and answers that were rejected.

    Raises:
        DataError: it cannot be read, has no line, or a rejected answer in some lines alone.
    """
    records = read_records(path)
    lacking = [where for where, record in records if not record.keys() >= {"chosen", "rejected"}]
    if lacking and len(lacking) < len(records):
        raise DataError(
            f"{lacking[0]} lacks 'chosen' or 'rejected', which other lines have: every line is a pair, or none"
        )
    return not lacking


def _encoded(examples: Sequence[Example], tokenizer: Tokenizer, block_size: int) -> Encoded:
    encoded = encode_examples(examples, tokenizer, block_size=block_size)
    if len(encoded) > len(examples):  # a text without a prompt is cut into pieces, which are no pairs
        number = int(np.bincount(encoded.source).argmax())
        raise DataError(
            f"example {number + 1} of the pairs has no prompt, and an answer longer than model.block_size = "
            f"{block_size}: leave it out, or stretch the model first (bonsai stretch)"
        )
    return encoded


def _chosen(path: Path) -> list[Example]:
    return [example_of(record, CHOSEN, where) for where, record in read_records(path)]


def _rejected(examples: Sequence[Example], path: Path) -> list[Example]:
    return [example_of(example.record, REJECTED, str(path)) for example in examples]

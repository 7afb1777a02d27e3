"""A trained model on the table: what calibrating it and measuring its loss need, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bonsaigpt.compress.moments import Moments
from bonsaigpt.config import ModelConfig
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.measure import evaluate
from bonsaigpt.structure import Arrays

__all__ = ["Advance", "Subject", "silent"]

Advance = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""

_JUDGED = 3
"""The text that slopes are measured on is one part in so many of the one that is calibrated on."""


def silent(what: str, done: int, total: int) -> None:
    """For whoever does not want to know."""


@dataclass(frozen=True)
class Subject:
    """A model with dense weights (where it is to be compressed), and text to judge it by."""

    engine: Engine
    config: ModelConfig
    values: Arrays
    source: BatchSource
    tokens: int = 65_536
    """Of the training split, to calibrate on."""
    order: int = 1
    """Which other order of the training split that is (``BatchSource.reordered``)."""

    @cached_property
    def model(self) -> Any:
        """The engine's model of it, before anything was done."""
        return self.engine.model(self.config, self.values)

    @cached_property
    def calibration(self) -> list[np.ndarray]:
        """Batches (B, T) of the training split in another order than training had."""
        return [batch.tokens_BT for batch in self._batches(0, self.tokens)]

    @cached_property
    def judged(self) -> list[Batch]:
        """Other batches, of the training split too: the validation split is not for planning."""
        return self._batches(len(self.calibration), self.tokens // _JUDGED)

    @cached_property
    def token_shares(self) -> np.ndarray:
        """How often each token of the vocabulary (padding included) is read in calibration, and once more, (V,)."""
        tokens = np.concatenate([batch.ravel() for batch in self.calibration])
        counts = np.bincount(tokens, minlength=self.config.vocabulary_rows) + 1.0
        return counts / counts.sum()

    def moments(self, names: Sequence[str], model: Any = None) -> dict[str, Moments]:
        """Of the named maps: their own inputs and outputs; of ``model``'s maps the inputs there, and the outputs that
        would bring its residual stream back to the subject's."""
        if model is None:
            sums = self.engine.map_sums(self.model, self.calibration, names)
        else:
            sums = self.engine.map_sums(model, self.calibration, names, teacher=self.model)
        return {name: Moments(*means) for name, means in sums.items()}

    def judge(self, model: Any) -> float:
        """The mean loss on ``judged``, nats a token."""
        scores = [self.engine.evaluate(model, batch)[0] for batch in self.judged]
        return sum(scores) / sum(batch.count for batch in self.judged)

    def validate(self, model: Any, advance: Advance = silent) -> float:
        """The loss over the whole validation split, nats a token."""
        return evaluate(self.engine, model, self.source, advance=advance).loss

    def _batches(self, first: int, tokens: int) -> list[Batch]:
        other, found, count = self.source.reordered(self.order), list[Batch](), 0
        while count < tokens:
            found.append(other.batch_at(first + len(found)))
            count += found[-1].tokens_BT.size
        return found

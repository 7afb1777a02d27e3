"""The loss of a model over a whole validation split, in three units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over the whole split; two passes over the same weights give the same numbers."""

    loss: float
    """Mean negative log-likelihood, nats a token."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float | None
    """Total bits over the bytes of the text that the targets stand for: comparable across tokenizers. The cost of
    end-of-text tokens is in the bits; they add no bytes. None where the targets are no text."""
    exact: float | None
    """Share of rows whose every target is the first choice, for toys with an answer."""
    tokens: int
    """Targets that were scored."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, scores: dict[str, Any]) -> Evaluation:
        """What ``as_dict`` gave."""
        optional: dict[str, Any] = {"bits_per_byte": None, "exact": None}
        return cls(**optional | scores)


def evaluate(
    engine: Engine, model: Any, source: BatchSource, *, advance: Callable[[str, int, int], None] | None = None
) -> Evaluation:
    """Score every target of the source's validation split exactly once; ``advance(what, done, total)`` follows."""
    total, solved, count, rows = 0.0, 0.0, 0, 0
    for batch in source.validation():
        loss_sum, right = engine.evaluate(model, batch, exact=source.exact_match)
        total += loss_sum
        count += batch.count
        rows += len(batch.tokens_BT)
        solved += right
        if advance:
            advance("evaluating", count, source.validation_count())
    total, solved = engine.world.sum([total, solved])  # each process has scored its part of every batch
    text_bytes = source.validation_bytes()
    loss = total / count
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # beyond, a float overflows
        bits_per_byte=total / math.log(2) / text_bytes if text_bytes else None,
        exact=solved / rows if source.exact_match else None,
        tokens=count,
    )

"""The loss of a model over a whole validation split, in three units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from bonsaigpt.config import MemoryConfig, ModelConfig
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.engines import Engine

__all__ = ["Evaluation", "badness", "evaluate"]


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
    """Share of rows whose every target is the first choice, for toys and examples with an answer."""
    tokens: int
    """Targets that were scored."""
    parts: dict[str, float] | None = None
    """Of a mixture the loss on the validation split of each part; ``loss`` is their mean, weighted by shares."""
    margin: float | None = None
    """Of pairs in preference tuning: how much further the chosen answer is above the rejected one than under the
    reference, as a log-likelihood ratio times beta, in nats; mean over pairs."""
    ordered: float | None = None
    """Of the same pairs: share whose margin is above zero; one of zero counts half."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def scalars(self) -> dict[str, float]:
        """All single numbers by name, for curves; ``parts/NAME`` for the parts of a mixture."""
        whole = {name: float(value) for name, value in self.as_dict().items() if name != "parts"}
        return whole | {f"parts/{name}": loss for name, loss in (self.parts or {}).items()}

    def badness(self, by: Literal["loss", "exact", "preference"]) -> tuple[float, float]:
        """What is the lower the better the model is, as ``train.best`` says; the second number decides where the first
        is equal."""
        return badness(self.as_dict(), by)

    @classmethod
    def from_dict(cls, scores: dict[str, Any]) -> Evaluation:
        """What ``as_dict`` gave."""
        optional: dict[str, Any] = {"bits_per_byte": None, "exact": None}
        return cls(**optional | scores)


def badness(scores: Mapping[str, Any], by: Literal["loss", "exact", "preference"]) -> tuple[float, float]:
    """``Evaluation.badness`` of what ``as_dict`` gave: the share of answers that are wrong, or of pairs in the wrong
    order, and the loss."""
    right = {"loss": None, "exact": "exact", "preference": "ordered"}[by]
    return 1.0 - (scores.get(right, 0.0) if right else 0.0), scores["loss"]


def evaluate(
    engine: Engine,
    model: Any,
    source: BatchSource,
    *,
    advance: Callable[[str, int, int], None] | None = None,
    memory: tuple[ModelConfig, MemoryConfig] | None = None,
) -> Evaluation:
    """Score every target of the source's validation split exactly once; ``advance(what, done, total)`` follows.

    Args:
        memory: of which model, and how much of what stood before a row is remembered: then the split is read in some
            streams side by side. None, or a memory of kind none: in windows that know nothing of each other.
    """
    if source.parts:
        return _weighted(engine, model, source, advance)
    total, solved, count, rows = 0.0, 0.0, 0, 0
    batches, carried = source.validation(), None
    if memory is not None and memory[1].kind != "none":
        assert isinstance(source, TokenBatches)  # nothing else has streams
        batches = source.validation_streams()
    for batch in batches:
        if memory is not None and batch.reset_B is not None:  # all rows start anew
            carried = engine.memory(*memory, rows=len(batch.tokens_BT))
        loss_sum, right = engine.evaluate(model, batch, exact=source.exact_match, memory=carried)
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


def _weighted(
    engine: Engine, model: Any, source: BatchSource, advance: Callable[[str, int, int], None] | None
) -> Evaluation:
    """The expected scores of a sample of a mixture: means of the parts' nats, and of their bytes, a token."""
    found: dict[str, Evaluation] = {}
    loss, bytes_a_token, done = 0.0, 0.0, 0
    for name, (share, part) in source.parts.items():
        follow = None
        if advance:
            follow = partial(_shifted, advance, done, source.validation_count())
        found[name] = evaluate(engine, model, part, advance=follow)
        done += found[name].tokens
        loss += share * found[name].loss
        bytes_a_token += share * part.validation_bytes() / found[name].tokens
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=loss / math.log(2) / bytes_a_token if bytes_a_token else None,
        exact=None,
        tokens=done,
        parts={name: evaluation.loss for name, evaluation in found.items()},
    )


def _shifted(advance: Callable[[str, int, int], None], before: int, total: int, what: str, done: int, _: int) -> None:
    advance(what, before + done, total)

"""A validation split target by target: standard errors, loss by position, calibration, windows that overlap.

Neighbouring tokens are no independent measurements: standard errors are over rows (windows of text, or examples), each
a cluster of its tokens, as for a ratio of two sums (Cochran 1977, section 6.3).

``stride`` slides a window over the text by so many tokens, and scores the last ones of each window alone, which have
seen at least block - stride tokens before them; the first window is scored whole. This is Hugging Face's sliding-window
perplexity. Without it windows do not overlap, and a target early in a window has seen little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bonsaigpt.data.batches import IGNORE, Batch, BatchSource
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.engines import Engine
from bonsaigpt.errors import DataError

__all__ = [
    "Bin",
    "Details",
    "Figure",
    "Stretch",
    "calibration",
    "details_of",
    "over_positions",
    "score_targets",
    "strided",
]

_BINS = 15
"""Of the confidence, of equal width (Guo et al. 2017)."""
_TOKENS = 16384
"""Positions of a batch."""


@dataclass(frozen=True)
class Figure:
    """A number and its standard error; None where a single row says nothing of it."""

    value: float
    error: float | None

    def times(self, factor: float) -> Figure:
        """In another unit."""
        return Figure(self.value * factor, None if self.error is None else self.error * abs(factor))

    def text(self, form: str = ".4f") -> str:
        """``1.2345 ± 0.0067``."""
        return format(self.value, form) + ("" if self.error is None else f" ± {format(self.error, form)}")


@dataclass(frozen=True)
class Stretch:
    """A stretch of positions in a window, from 1, both ends included."""

    first: int
    last: int
    targets: int
    loss: Figure


@dataclass(frozen=True)
class Bin:
    """Targets whose first choice had a probability within some bounds."""

    low: float
    high: float
    targets: int
    confidence: float
    """Mean probability of the first choice."""
    right: float
    """Share of them where it was right."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What can be said of a split; losses in nats a token."""

    loss: Figure
    perplexity: Figure
    bits_per_byte: Figure | None
    first_choice: Figure
    """Share of the targets that are the first choice."""
    answers: Figure | None
    """Share of the rows whose every target is, for toys and examples with an answer."""
    calibration_error: float
    """Expected calibration error of the first choice (Guo et al. 2017, equation 3)."""
    tokens: int
    rows: int
    bins: Sequence[Bin]
    positions: Sequence[Stretch]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def strided(source: TokenBatches, stride: int) -> Iterator[Batch]:
    """Windows of a block that begin every ``stride`` tokens of the validation split; each token but the first is a
    target exactly once.

    Raises:
        DataError: a stride longer than a block would leave tokens out.
    """
    block = source.eval_block_size or source.block_size
    if not 1 <= stride <= block:
        raise DataError(f"a stride of {stride} leaves tokens out: use 1 to {block}, the block")
    ids, total = source.val, len(source.val) - 1
    starts = np.arange(0, max(1, total - block + stride), stride)
    rows = max(1, _TOKENS // block)
    for first in range(0, len(starts), rows):
        part = starts[first : first + rows]
        shape = len(part), min(block, total)
        tokens_BT, targets_BT = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        for row, start in enumerate(part.tolist()):
            end = min(start + block, total)
            text = ids.read(start, end + 1).astype(np.int64)
            seen = 0 if start == 0 else block - stride
            tokens_BT[row, : end - start] = text[:-1]
            targets_BT[row, seen : end - start] = text[1 + seen :]
        yield Batch(tokens_BT=tokens_BT, targets_BT=targets_BT, count=int((targets_BT != IGNORE).sum()))


def score_targets(
    engine: Engine,
    model: Any,
    batches: Iterator[Batch],
    *,
    total: int,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> TargetScores:
    """All targets of some batches, in their order."""
    parts: list[TargetScores] = []
    rows = done = 0
    for batch in batches:
        scores = engine.target_scores(model, batch)
        parts.append(scores.after(rows))
        rows, done = rows + len(batch.tokens_BT), done + batch.count
        advance("scoring", done, total)
    return TargetScores.joined(parts)


def details_of(scores: TargetScores, source: BatchSource) -> Details:
    """What the scores of a whole validation split say."""
    loss = clustered_mean(scores.losses_N, scores.rows_N)
    perplexity = math.exp(min(loss.value, 700.0))
    total_bytes, n = source.validation_bytes(), len(scores.losses_N)
    bins = calibration(scores.confidence_N, scores.right_N)
    return Details(
        loss=loss,
        perplexity=Figure(perplexity, None if loss.error is None else loss.error * perplexity),  # to first order
        bits_per_byte=loss.times(n / math.log(2) / total_bytes) if total_bytes else None,
        answers=_answers(scores) if source.exact_match else None,
        first_choice=clustered_mean(scores.right_N.astype(np.float64), scores.rows_N),
        calibration_error=sum(b.targets * abs(b.confidence - b.right) for b in bins) / n,
        tokens=n,
        rows=len(np.unique(scores.rows_N)),
        bins=bins,
        positions=over_positions(scores),
    )


def _answers(scores: TargetScores) -> Figure:
    _, row_N = np.unique(scores.rows_N, return_inverse=True)
    right_R = np.bincount(row_N, weights=~scores.right_N) == 0
    return clustered_mean(right_R.astype(np.float64), np.arange(len(right_R)))


def clustered_mean(values_N: np.ndarray, rows_N: np.ndarray) -> Figure:
    """The mean over all targets, with the standard error that comes of drawing whole rows."""
    _, row_N = np.unique(rows_N, return_inverse=True)
    mean = float(values_N.mean())
    counts_R, sums_R = np.bincount(row_N), np.bincount(row_N, weights=values_N)
    R = len(counts_R)
    if R < 2:
        return Figure(mean, None)
    off_R = sums_R - mean * counts_R
    return Figure(mean, float(np.sqrt(R / (R - 1) * np.square(off_R).sum()) / counts_R.sum()))


def over_positions(scores: TargetScores) -> list[Stretch]:
    """The loss by the number of tokens that a target has before it in its window: 1, 2, 3 to 4, 5 to 8, and so on."""
    found: list[Stretch] = []
    first, most = 1, int(scores.places_N.max()) + 1
    while first <= most:
        last = min(most, 1 << (first - 1).bit_length())
        here = (scores.places_N + 1 >= first) & (scores.places_N + 1 <= last)
        if here.any():
            loss = clustered_mean(scores.losses_N[here], scores.rows_N[here])
            found.append(Stretch(first, last, int(here.sum()), loss))
        first = last + 1
    return found


def calibration(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = _BINS) -> list[Bin]:
    """Bins of equal width, those that hold something."""
    number_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    found: list[Bin] = []
    for number in range(bins):
        here = number_N == number
        if here.any():
            bounds = number / bins, (number + 1) / bins
            found.append(Bin(*bounds, int(here.sum()), float(confidence_N[here].mean()), float(right_N[here].mean())))
    return found

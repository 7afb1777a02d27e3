"""What a cache policy costs where the past matters: answers of a task, read through the deployed cache.

Losses of text flatter whatever forgets, because most of what comes next depends on what stands just before. A task such
as ``recall`` asks for single tokens of the past, and an answer is right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.data.batches import IGNORE, Batch, BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.measure.kv import plain_bits, reading
from bonsaigpt.measure.statistics import estimate, with_margin

__all__ = ["KVAnswers", "score_answers"]


@dataclass(frozen=True, kw_only=True)
class KVAnswers:
    """Held-out problems of a task, read through a policy and through everything exact."""

    exact: float
    """Share of the problems whose every answer token is the model's first choice."""
    right: float
    """Share of the answer tokens that are."""
    exact_lost: float
    """Problems, as a share of all, that ``full`` solves and the policy does not, less those the other way round."""
    margin: float | None
    """Half of the 95 % interval (Student's t) of ``exact_lost``, from the spread between problems; None of one."""
    loss: float
    """Nats an answer token."""
    bits: float
    """Held for a problem while its last token was read; that one at 16 bits a number."""
    factor: float
    """How many times fewer that are than keys and values of the whole problem in 16 bits."""
    problems: int

    @property
    def points_lost(self) -> str:
        """``exact_lost`` with its margin, in percentage points."""
        return with_margin(100 * self.exact_lost, None if self.margin is None else 100 * self.margin, ".2f")


def score_answers(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    policies: Sequence[KVConfig],
    source: BatchSource,
    *,
    advance: Callable[[str, int, int], None] | None = None,
) -> list[KVAnswers]:
    """Read the validation problems of a task (``source.exact_match``) through each policy, in chunks of its ``chunk``
    tokens, those of the answer too: they are given, whatever the model would have said."""
    batches = list(source.validation())
    full = _read(engine, model, config, KVConfig(), batches)
    found: list[KVAnswers] = []
    for number, kv in enumerate(policies):
        read = _read(engine, model, config, kv, batches)
        lost = estimate((full.solved_R.astype(float) - read.solved_R).tolist())
        found.append(
            KVAnswers(
                exact=float(read.solved_R.mean()),
                right=float(read.right_N.mean()),
                exact_lost=lost.mean,
                margin=lost.margin,
                loss=float(read.losses_N.mean()),
                bits=read.bits,
                factor=plain_bits(config, batches[0].tokens_BT.shape[1]) / read.bits,
                problems=lost.n,
            )
        )
        if advance:
            advance("policies", number + 1, len(policies))
    return found


@dataclass(frozen=True)
class _Read:
    solved_R: np.ndarray
    right_N: np.ndarray
    """Of each answer token."""
    losses_N: np.ndarray
    bits: float


def _read(engine: Engine, model: Any, config: ModelConfig, kv: KVConfig, batches: Sequence[Batch]) -> _Read:
    solved: list[np.ndarray] = []
    right: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    bits = 0.0
    for batch in batches:
        streams = np.concatenate((batch.tokens_BT, batch.targets_BT[:, -1:]), axis=1).astype(np.int64)
        read = reading(engine, model, config, kv, streams, chunk=kv.chunk, keep_logits=True)
        assert read.logits_RTV is not None
        asked_RT = batch.targets_BT != IGNORE
        right_RT = read.logits_RTV.argmax(-1) == batch.targets_BT
        solved.append((right_RT | ~asked_RT).all(1))
        right.append(right_RT[asked_RT])
        losses.append(read.losses_RT[asked_RT])
        bits = read.bits
    return _Read(np.concatenate(solved), np.concatenate(right), np.concatenate(losses), bits)

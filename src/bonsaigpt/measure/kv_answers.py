"""What a cache policy costs where the past matters: answers of a task, read through the deployed cache.

Losses of text flatter whatever forgets, because most of what comes next depends on what stands just before. A task such
as ``recall`` asks for single tokens of the past, and an answer is right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.data.batches import IGNORE, BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.measure.kv import plain_bits, reading

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
    margin: float
    """Half of the 95 % interval of ``exact_lost``, from the spread between problems."""
    loss: float
    """Nats an answer token."""
    bits: float
    """Held for a problem while its last token was read; that one at 16 bits a number."""
    factor: float
    """How many times fewer that are than keys and values of the whole problem in 16 bits."""
    problems: int


def score_answers(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    kv: KVConfig,
    source: BatchSource,
    *,
    advance: Callable[[str, int, int], None] | None = None,
) -> KVAnswers:
    """Read the validation problems of a task (``source.exact_match``) in chunks of ``kv.chunk`` tokens, those of the
    answer too: they are given, whatever the model would have said."""
    full = KVConfig.model_validate({"chunk": kv.chunk})
    lost: list[np.ndarray] = []
    solved: list[np.ndarray] = []
    right: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    bits = tokens = done = 0
    for batch in source.validation():
        targets_RT = batch.targets_BT
        streams = np.concatenate((batch.tokens_BT, targets_RT[:, -1:]), axis=1).astype(np.int64)
        asked_RT = targets_RT != IGNORE
        plain_RT, _, _ = _right(engine, model, config, full, streams, kv.chunk)
        right_RT, losses_RT, bits = _right(engine, model, config, kv, streams, kv.chunk)
        plain_R, solved_R = ((one | ~asked_RT).all(1) for one in (plain_RT, right_RT))
        lost.append(plain_R.astype(float) - solved_R)
        solved.append(solved_R)
        right.append(right_RT[asked_RT])
        losses.append(losses_RT[asked_RT])
        tokens, done = targets_RT.shape[1], done + int(asked_RT.sum())
        if advance:
            advance("answers", done, source.validation_count())
    lost_R = np.concatenate(lost)
    margin = 1.96 * lost_R.std(ddof=1) / np.sqrt(len(lost_R)) if len(lost_R) > 1 else 0.0
    return KVAnswers(
        exact=float(np.concatenate(solved).mean()),
        right=float(np.concatenate(right).mean()),
        exact_lost=float(lost_R.mean()),
        margin=float(margin),
        loss=float(np.concatenate(losses).mean()),
        bits=bits,
        factor=plain_bits(config, tokens) / bits,
        problems=len(lost_R),
    )


def _right(
    engine: Engine, model: Any, config: ModelConfig, kv: KVConfig, streams_RT1: np.ndarray, chunk: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Whether each token is the first choice, its loss, and the bits held for a row."""
    read = reading(engine, model, config, kv, streams_RT1, chunk=chunk, keep_logits=True)
    assert read.logits_RTV is not None
    return read.logits_RTV.argmax(-1) == streams_RT1[:, 1:], read.losses_RT, read.bits

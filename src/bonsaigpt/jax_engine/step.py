"""One optimizer step over micro-batches, and the evaluation of a batch: pure functions of the configuration and trees.

The batch is cut into micro-batches of equal shape, which a loop of XLA's goes through: the program is as large for
sixteen as for one, and the same for fifteen. Dropout is a function of (seed, step, micro-batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.jax_engine import guard, optim
from bonsaigpt.jax_engine.loss import cross_entropy_sum, loss
from bonsaigpt.jax_engine.model import Params, flat, forward, narrowed, nested
from bonsaigpt.jax_engine.optim import Flat, Moments
from bonsaigpt.randomness import key

__all__ = ["Learned", "Rows", "cut", "evaluate_rows", "fresh", "rows_of", "token_losses", "train_step"]


@partial(jax.tree_util.register_dataclass, data_fields=["params", "moments", "guard"], meta_fields=[])
@dataclass(frozen=True)
class Learned:
    """All that a step changes; its memory goes from step to step."""

    params: Params
    moments: Moments
    guard: Array


@partial(jax.tree_util.register_dataclass, data_fields=["tokens", "targets", "documents"], meta_fields=[])
@dataclass(frozen=True)
class Rows:
    """A batch as the engine takes it, int32: (B, T), or cut into micro-batches (N, B, T)."""

    tokens: Array
    targets: Array
    documents: Array | None


def fresh(config: RunConfig, params: Params) -> Learned:
    """Before the first step."""
    return Learned(params, optim.fresh(config, flat(params)), guard.fresh())


def rows_of(batch: Batch, *, rows: int = 0) -> Rows:
    """The batch as int32, filled up to so many ``rows`` that ask nothing."""

    def made(array: np.ndarray, filler: int) -> Any:
        missing = max(0, rows - len(array))
        return np.pad(array.astype(np.int32), [(0, missing), (0, 0)], constant_values=filler)

    documents = None if batch.documents_BT is None else made(batch.documents_BT, 0)
    return Rows(made(batch.tokens_BT, 0), made(batch.targets_BT, IGNORE), documents)


def cut(batch: Batch, most: int, *, full: int = 0, devices: int = 1) -> tuple[Rows, int]:
    """The batch in equal micro-batches of at most ``most`` rows each, and how many of them hold something.

    They are filled up with empty rows, so that all are equal and each of so many ``devices`` takes as many rows as any
    other. A ramp of batches up to ``full`` rows makes few shapes, each of which is compiled: a micro-batch has as many
    rows as one of a full batch, or a power of two where the whole batch is smaller, and the number of them is a power
    of two, of which a step computes those that hold something.
    """
    total = len(batch.tokens_BT)
    full = max(full, total)
    rows = min(-(-full // -(-full // most)), _power_of_two(total) if total < full else total)
    rows = -(-rows // devices) * devices
    parts = -(-total // rows)
    held = _power_of_two(parts)
    return jax.tree.map(lambda a: a.reshape(held, rows, a.shape[1]), rows_of(batch, rows=held * rows)), parts


def _power_of_two(number: int) -> int:
    """The smallest that is no less."""
    return 1 << (number - 1).bit_length()


def train_step(
    config: RunConfig,
    learned: Learned,
    batch: Rows,
    parts: Array,
    count: Array,
    share: Array,
    step: Array,
    *,
    dtype: Any,
    fused: bool,
) -> tuple[Learned, Array]:
    """Forward, backward and update; the new state, and (4,) float32: the sum of the loss, the gradient norm before
    clipping, steps skipped, skipped in a row.

    Args:
        batch: cut into micro-batches, of which the first ``parts`` count.
        count: targets that count in the whole batch: the gradient is of the mean over them, however it is cut.
        share: of the peak learning rates.
        dtype: number format of the matrix products.
        fused: attend by cuDNN's kernel where it can do it.
    """
    noise = None
    if config.model.dropout:
        noise = jax.random.fold_in(jax.random.key(key(config.seed, "dropout") & 0x7FFFFFFF), step)

    moving, frozen = optim.trained(config, flat(learned.params))

    def objective(moving: Flat, rows: Rows, part: Array) -> tuple[Array, Array]:
        objective, summed = loss(
            config.model,
            narrowed(nested(config.model, moving | frozen), dtype),
            rows.tokens,
            rows.targets,
            documents_BT=rows.documents,
            key=None if noise is None else jax.random.fold_in(noise, part),
            recompute=config.train.recompute,
            fused=fused,
            z_loss=config.optim.z_loss,
        )
        return objective / count, summed

    learn = jax.grad(objective, has_aux=True)
    if len(batch.tokens) == 1:
        gradient, summed = learn(moving, jax.tree.map(lambda a: a[0], batch), jnp.zeros((), jnp.int32))
    else:

        def add(part: Array, sums: tuple[Flat, Array]) -> tuple[Flat, Array]:
            rows = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, part, keepdims=False), batch)
            return jax.tree.map(jnp.add, sums, learn(moving, rows, part))

        zeros = jax.tree.map(jnp.zeros_like, moving), jnp.zeros((), jnp.float32)
        gradient, summed = lax.fori_loop(0, parts, add, zeros)
    clipped, norm = optim.clip(config, gradient)
    keep, judged = guard.judge(config.train.guard, learned.guard, norm, summed)
    weights, moments = optim.update(config, flat(learned.params), clipped, learned.moments, share=share, keep=keep)
    figures = jnp.stack([summed, norm, judged[5], judged[6]]).astype(jnp.float32)
    return Learned(nested(config.model, weights), moments, judged), figures


def evaluate_rows(config: ModelConfig, params: Params, rows: Rows, *, dtype: Any, exact: bool) -> tuple[Array, Array]:
    """Sum of the loss in nats, and, if ``exact``, rows whose every target is the model's first choice."""
    params = narrowed(params, dtype)
    if not exact:
        return loss(config, params, rows.tokens, rows.targets, documents_BT=rows.documents)[1], jnp.zeros((), jnp.int32)
    logits_BTV = forward(config, params, rows.tokens, documents_BT=rows.documents)
    right_BT = (logits_BTV.argmax(axis=-1) == rows.targets) | (rows.targets == IGNORE)
    return cross_entropy_sum(logits_BTV, rows.targets)[0], right_BT.all(axis=1).sum()


def token_losses(config: ModelConfig, params: Params, tokens_BT: Array, targets_BT: Array, *, dtype: Any) -> Array:
    """Loss of every target in nats, (B, T), a row at a time."""

    def of_row(row: tuple[Array, Array]) -> Array:
        logits_TV = forward(config, narrowed(params, dtype), row[0][None])[0].astype(jnp.float32)
        chosen_T = jnp.take_along_axis(logits_TV, row[1][:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_TV, axis=-1) - chosen_T

    return lax.map(of_row, (tokens_BT, targets_BT))

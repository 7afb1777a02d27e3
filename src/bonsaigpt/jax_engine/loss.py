"""Cross-entropy as a sum over the targets, so that any split into micro-batches or devices adds up to the same mean."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from bonsaigpt.config import ModelConfig
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.jax_engine.model import Params, hidden, logits

__all__ = ["cross_entropy_sum", "loss"]

WHOLE = 2**23
"""Logits up to this many elements (32 MiB of float32) are held at once; more are worked off in chunks."""


def cross_entropy_sum(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Negative log-likelihood in nats summed over the targets that are not IGNORE, and the sum of the squared
    log-partitions; float32 scalars."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    partition = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    kept = targets != IGNORE
    return jnp.where(kept, partition - chosen, 0.0).sum(), jnp.where(kept, partition**2, 0.0).sum()


def loss(
    config: ModelConfig,
    params: Params,
    tokens_BT: Array,
    targets_BT: Array,
    *,
    z_loss: float = 0.0,
    **how: Any,
) -> tuple[Array, Array]:
    """The objective to descend and the cross-entropy, both sums over the targets, in nats; ``how`` as of ``hidden``.

    Where the logits have more than ``WHOLE`` elements they are made, used and made again in the backward pass in chunks
    of rows, and never held all at once.
    """
    hidden_ND = hidden(config, params, tokens_BT, **how)[0].reshape(-1, config.n_embd)
    targets_N = targets_BT.reshape(-1)

    def score(hidden: Array, targets: Array) -> tuple[Array, Array]:
        return cross_entropy_sum(logits(config, params, hidden), targets)

    rows = max(1, WHOLE // config.vocabulary_rows)
    if len(targets_N) <= rows:
        summed, squares = score(hidden_ND, targets_N)
    else:
        missing = -len(targets_N) % rows
        parts = (
            jnp.pad(hidden_ND, [(0, missing), (0, 0)]).reshape(-1, rows, config.n_embd),
            jnp.pad(targets_N, (0, missing), constant_values=IGNORE).reshape(-1, rows),
        )
        sums = lax.map(lambda part: jax.checkpoint(score)(*part), parts)
        summed, squares = (each.sum() for each in sums)
    return summed + z_loss * squares if z_loss else summed, summed

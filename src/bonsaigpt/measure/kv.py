"""What a cache policy costs: teacher-forced losses through the deployed cache, chunk by chunk, of contiguous streams.

A full pass with the cache coded afterwards would measure nothing: every query would still see exact keys and values.
Here the tokens of a chunk see each other exactly, and all that came before as the cache gives it back; with chunks of
one token that is decoding. The tokens of the chunk are counted besides what is held, as what is held of a token, at 16
bits a number: keys and values, or the input of the attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, LayerInput, ModelConfig
from bonsaigpt.data.batches import IGNORE, BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.errors import DataError
from bonsaigpt.kv import state_bits
from bonsaigpt.measure.statistics import estimate
from bonsaigpt.units import named

__all__ = [
    "KVReading",
    "KVScore",
    "contiguous",
    "cut",
    "numbers_per_token",
    "plain_bits",
    "read_windows",
    "reading",
    "score_policy",
]

Advance = Callable[[int, int], None]

_ROWS = 64
"""Pieces that are read side by side: what they hold still fits a processor's caches."""


@dataclass(frozen=True, kw_only=True)
class KVReading:
    """Token by token, of R streams of T targets."""

    losses_RT: np.ndarray
    """Nats, float64."""
    bits: float
    """Held for one stream while its last tokens were read: what the cache keeps, and the chunk at 16 bits."""
    kl_RT: np.ndarray | None = None
    """KL divergence of the next token's distribution from the reference's, nats."""
    agree_RT: np.ndarray | None = None
    """Whether the likeliest token is the reference's."""
    logits_RTV: np.ndarray | None = None
    """float32, if they were asked for."""


@dataclass(frozen=True, kw_only=True)
class KVScore:
    """A text read through a policy."""

    loss: float
    """Nats a token."""
    loss_added: float
    """To the same pieces of text read through everything exact: ``full``, or for pieces longer than the block
    ``window(block_size)``."""
    margin: float | None
    """Half of the 95 % interval (Student's t) of ``loss_added``, from the spread between pieces; None of one piece."""
    bits: float
    """Held for a piece at its end, the tokens under way included at 16 bits each."""
    factor: float
    """How many times fewer that are than a block of keys and values in 16 bits."""
    tokens: int
    """Targets that were scored."""
    piece: int
    """Tokens that were read one after the other."""


def score_policy(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    kv: KVConfig,
    ids: np.ndarray,
    *,
    advance: Callable[[str, int, int], None] | None = None,
) -> KVScore:
    """Read a text through a cache in chunks of ``kv.chunk``: in pieces of 16 blocks where the policy has no end, else
    of one block. Every token of a piece counts, also the first ones."""
    block = config.block_size
    most = max(1, min(len(ids) - 1, 16 * block if kv.unbounded(config) else block))
    streams = cut(ids, (len(ids) - 1) // most, most)
    exact = KVConfig.model_validate(
        {"policy": {"select": {"kind": "window", "window": block}} if kv.unbounded(config) else {}, "chunk": kv.chunk}
    )
    found: list[tuple[np.ndarray, np.ndarray, float]] = []
    for start in range(0, len(streams), _ROWS):
        part = streams[start : start + _ROWS]
        plain, coded = (reading(engine, model, config, one, part, chunk=kv.chunk) for one in (exact, kv))
        found.append((plain.losses_RT, coded.losses_RT, coded.bits))
        if advance:
            advance("reading", start + len(part), len(streams))
    plain_RT, coded_RT = (np.concatenate([one[i] for one in found]) for i in (0, 1))
    added = estimate((coded_RT - plain_RT).mean(1).tolist())
    bits = found[-1][2]
    return KVScore(
        loss=float(coded_RT.mean()),
        loss_added=added.mean,
        margin=added.margin,
        bits=bits,
        factor=plain_bits(config, block) / bits,
        tokens=coded_RT.size,
        piece=streams.shape[1] - 1,
    )


def numbers_per_token(config: ModelConfig, kv: KVConfig | None = None) -> int:
    """What a cache takes in of one token, of each layer that makes keys and values of its own: these, or under a policy
    that holds the input of the attention (``x=``) that input."""
    heads, key, value = config.kv_widths
    held = [kv.of(layer).hold if kv else None for layer in config.kv_layers]
    return sum(config.n_embd if isinstance(one, LayerInput) else heads * (key + value) for one in held)


def plain_bits(config: ModelConfig, tokens: int, kv: KVConfig | None = None) -> int:
    """Bits of so many tokens of which nothing is coded, at 16 bits a number, or of linear attention's state. Without a
    policy what everything is compared with."""
    return 16 * tokens * numbers_per_token(config, kv) + state_bits(config, bits=16)


def contiguous(source: BatchSource) -> np.ndarray:
    """The validation split as one text, (N,) int64.

    Raises:
        DataError: it is none: rows of tasks, packed documents, or a mixture.
    """
    if source.parts:
        raise DataError("the validation split is a mixture of texts: point at a model of one, or give --text FILE")
    ids: list[np.ndarray] = []
    follows: int | None = None
    for batch in source.validation():
        for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
            count = int((targets != IGNORE).sum())
            one_text = (targets[:count] != IGNORE).all() and (tokens[1:count] == targets[: count - 1]).all()
            if not one_text or batch.documents_BT is not None or (follows is not None and tokens[0] != follows):
                raise DataError("the validation split is no contiguous text, which a cache is read through: give one")
            if count:
                ids.append(tokens[:count])
                follows = int(targets[count - 1])
    if follows is None:
        raise DataError("the validation split has no targets: give more text")
    return np.concatenate([*ids, [follows]]).astype(np.int64)


def cut(ids: np.ndarray, rows: int, length: int | None = None) -> np.ndarray:
    """A text as ``rows`` pieces of equal length that follow each other, (rows, T + 1): the last token of a piece is a
    target alone.

    Args:
        length: T; as much as there is by default.
    """
    most = (len(ids) - 1) // rows
    T = most if length is None else min(length, most)
    if T < 1:
        raise DataError(f"{named(len(ids), 'token')} cannot be cut into {rows} streams: use fewer")
    starts = np.arange(rows)[:, None] * most
    return ids[starts + np.arange(T + 1)]


def reading(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    kv: KVConfig,
    streams_RT1: np.ndarray,
    *,
    chunk: int = 1,
    reference_RTV: np.ndarray | None = None,
    keep_logits: bool = False,
    advance: Advance | None = None,
) -> KVReading:
    """Read streams through a cache, ``chunk`` tokens at a time.

    Args:
        streams_RT1: token ids, (R, T + 1).
        reference_RTV: logits to compare with.
        advance: told (tokens of each stream that were read, all of them).
    """
    reader = engine.reader(model, kv)
    tokens, targets = streams_RT1[:, :-1], streams_RT1[:, 1:]
    R, T = tokens.shape
    found: list[tuple[np.ndarray, ...]] = []
    bits = 0.0
    for start in range(0, T, chunk):
        part = slice(start, min(start + chunk, T))
        bits = reader.bits() / R + plain_bits(config, part.stop - part.start, kv)
        logits = reader.read(tokens[:, part])
        reference = None if reference_RTV is None else reference_RTV[:, part]
        found.append(_scores(logits, targets[:, part], reference, keep_logits))
        if advance:
            advance(part.stop, T)
    losses, kl, agree, kept = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    compared = reference_RTV is not None
    return KVReading(
        losses_RT=losses,
        bits=bits,
        kl_RT=kl if compared else None,
        agree_RT=agree if compared else None,
        logits_RTV=kept if keep_logits else None,
    )


def read_windows(
    engine: Engine,
    model: Any,
    config: ModelConfig,
    streams_RT1: np.ndarray,
    *,
    first: int,
    reference_RTV: np.ndarray | None = None,
    advance: Advance | None = None,
) -> KVReading:
    """The ceiling of streaming: each token from ``first`` on is predicted from the ``block_size`` tokens before it,
    read anew from the raw text. Losses before are of the tokens that there are.

    Only the last logits of each window count, so this costs ``block_size`` times as much as reading once.
    """
    R, T = streams_RT1.shape[0], streams_RT1.shape[1] - 1
    found: list[tuple[np.ndarray, ...]] = []
    for at in range(T):
        if at < first:
            logits = np.zeros((R, 1, config.vocabulary), dtype=np.float32)
        else:
            logits = engine.next_logits(model, streams_RT1[:, max(0, at + 1 - config.block_size) : at + 1])[:, None]
        reference = None if reference_RTV is None else reference_RTV[:, at : at + 1]
        found.append(_scores(logits, streams_RT1[:, at + 1 : at + 2], reference, True))
        if advance:
            advance(at + 1, T)
    losses, kl, agree, kept = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
    compared = reference_RTV is not None
    return KVReading(
        losses_RT=losses,
        bits=float(plain_bits(config, config.block_size)),
        kl_RT=kl if compared else None,
        agree_RT=agree if compared else None,
        logits_RTV=kept,
    )


def _scores(
    logits_RTV: np.ndarray, targets_RT: np.ndarray, reference_RTV: np.ndarray | None, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Losses, divergences, agreements, and the logits; empty where nothing was asked."""
    log_p = _log_softmax(logits_RTV)
    losses = -np.take_along_axis(log_p, targets_RT[..., None], axis=-1)[..., 0]
    kl, agree = np.zeros_like(losses), np.zeros(losses.shape, dtype=bool)
    if reference_RTV is not None:
        log_q = _log_softmax(reference_RTV)
        kl = (np.exp(log_q) * (log_q - log_p)).sum(-1)
        agree = log_p.argmax(-1) == log_q.argmax(-1)
    return losses, kl, agree, logits_RTV if keep else np.empty((*losses.shape, 0), dtype=np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))

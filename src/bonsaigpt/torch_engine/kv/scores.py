"""Which tokens are worth keeping: a score for each, from what the queries looked at or from the keys themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.config import (
    EvictingSelection,
    H2OSelection,
    KeyNormSelection,
    RandomSelection,
    SnapKVSelection,
    TokenSelection,
    TOVASelection,
)
from bonsaigpt.randomness import hash64, key

__all__ = ["Scorer", "Seen", "kept", "scorer"]


@dataclass(frozen=True)
class Seen:
    """What a pass over some new tokens showed, of all tokens that were held and the new ones, S together."""

    layer: int
    keys_BGSK: Tensor
    positions_BGS: Tensor
    """True positions; B and G may be 1."""
    shares_BGTS: Tensor | None
    """Attention of the new queries, summed over the heads of a group, where the scorer asked for it."""
    length: int
    """Tokens of the text so far, the new ones included."""


class Scorer(Protocol):
    """A way to score tokens."""

    attention: bool
    """Whether ``Seen`` must have the shares."""
    shared: bool
    """Whether all heads keep the same tokens."""
    every: int
    """Tokens between two choices."""

    def gather(self, held_BGS: Tensor | None, seen: Seen) -> Tensor | None:
        """What is held besides from pass to pass, one number a token, after this pass."""
        ...

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        """Scores (B, G, S), high for those to keep; in B and G they may be 1."""
        ...


def scorer(select: TokenSelection) -> Scorer | None:
    """The one that a selection means; None where the position alone decides."""
    match select:
        case H2OSelection():
            return _HeavyHitters(select)
        case SnapKVSelection():
            return _LastQueries(select)
        case TOVASelection():
            return _LastQuery()
        case KeyNormSelection():
            return _ShortKeys()
        case RandomSelection():
            return _Random(select.seed)
        case _:
            return None


def kept(scores_BGS: Tensor, select: EvictingSelection) -> Tensor:
    """The indices to keep, (B, G, most - 1), upwards: sinks, the newest, and the best of the others. The token that
    comes next is the last one of the window."""
    newest = select.window - 1
    scores = scores_BGS.clone()
    scores[..., : select.sinks] = torch.inf
    scores[..., scores.shape[-1] - newest :] = torch.inf
    # Sorted and stable: which of equals stay must not depend on their neighbours in the batch.
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[..., : select.most - 1].sort(dim=-1).values


def _grown(held_BGS: Tensor | None, like_BGS: Tensor) -> Tensor:
    """What was held, with zeros for the new tokens."""
    if held_BGS is None:
        return torch.zeros_like(like_BGS)
    return F.pad(held_BGS, (0, like_BGS.shape[-1] - held_BGS.shape[-1]))


class _HeavyHitters:
    attention, shared, every = True, False, 1

    def __init__(self, select: H2OSelection) -> None:
        self._mode, self._decay = select.mode, select.decay

    def gather(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        assert seen.shares_BGTS is not None
        T = seen.shares_BGTS.shape[2]
        if self._mode != "decay":
            return _grown(held_BGS, seen.shares_BGTS[:, :, 0]) + seen.shares_BGTS.sum(2)
        age_T = torch.arange(T - 1, -1, -1, device=seen.shares_BGTS.device)
        fresh = (seen.shares_BGTS * (self._decay**age_T)[:, None]).sum(2)
        return _grown(held_BGS, fresh) * self._decay**T + fresh

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        assert held_BGS is not None
        if self._mode != "age":
            return held_BGS
        return held_BGS / (seen.length - seen.positions_BGS)  # by the queries that could see it


class _LastQueries:
    attention, shared = True, False

    def __init__(self, select: SnapKVSelection) -> None:
        self.every, self._pool = select.queries, select.pool

    def gather(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        assert seen.shares_BGTS is not None
        shares = seen.shares_BGTS[:, :, -self.every :]
        return _grown(held_BGS, shares[:, :, 0]) + shares.sum(2)

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        assert held_BGS is not None
        return F.avg_pool1d(held_BGS, self._pool, stride=1, padding=self._pool // 2)


class _Stateless:
    shared, every = False, 1

    def gather(self, held_BGS: Tensor | None, seen: Seen) -> None:
        return None


class _LastQuery(_Stateless):
    attention, shared = True, True

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        assert seen.shares_BGTS is not None
        return seen.shares_BGTS[:, :, -1].mean(1, keepdim=True)


class _ShortKeys(_Stateless):
    attention = False

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        return -torch.linalg.vector_norm(seen.keys_BGSK.float(), dim=-1)


class _Random(_Stateless):
    attention = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, held_BGS: Tensor | None, seen: Seen) -> Tensor:
        """A function of layer, head and position, so that what is kept stays kept; the same in all rows."""
        positions = seen.positions_BGS.cpu().numpy()
        G = seen.keys_BGSK.shape[1]
        heads = [
            hash64(key(self._seed, "kept", seen.layer, head), positions[:, min(head, positions.shape[1] - 1)]) >> 11
            for head in range(G)
        ]
        scores = torch.stack([torch.from_numpy(h.astype("float64") * 2.0**-53) for h in heads], dim=1)
        return scores.to(seen.keys_BGSK.device)

"""What a policy keeps, and what the model then writes: to look at, beside the figures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bonsaigpt.config import EvictingSelection, KVConfig, WindowSelection
from bonsaigpt.data.tokenizers import Tokenizer
from bonsaigpt.engines import Engine
from bonsaigpt.generate import Request, Session
from bonsaigpt.kv import read_policy, write_policy
from bonsaigpt.sampling import Sampling
from bonsaigpt.study.kv import OWN, KVPoint, Subject, frontier

__all__ = ["Kept", "Written", "kept", "to_see", "to_write", "written"]

_MAPS, _TEXTS = 3, 6
"""Policies at most that are drawn, and that write."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which tokens a policy holds after each token of a text."""

    policy: str
    held: dict[tuple[int, int], np.ndarray]
    """By layer and head of keys and values: (T, T) bool, after token t (row) whether token s (column)."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a model goes on through a policy, with the same prompt and the same random numbers as everybody."""

    policy: str
    bits: float
    text: str
    same: int
    """Characters until the first that the uncompressed model would not have written."""


def to_see(points: Sequence[KVPoint], label: str) -> list[KVConfig]:
    """The policies of a model that choose single tokens, the best of each rule: where they look is not plain."""
    best: dict[str, tuple[float, KVConfig]] = {}
    for point in points:
        if point.model != label:
            continue
        kv = read_policy(point.policy)
        select = kv.policy.select
        if isinstance(select, EvictingSelection) and not isinstance(select, WindowSelection):
            best[select.kind] = min(best.get(select.kind, (np.inf, kv)), (point.added, kv), key=lambda one: one[0])
    return [kv for _, kv in sorted(best.values(), key=lambda one: one[0])[:_MAPS]]


def kept(engine: Engine, subject: Subject, kv: KVConfig, tokens_T: np.ndarray) -> Kept:
    """Read a text token by token and note what is held."""
    reader = engine.reader(subject.model, kv)
    layers, T = subject.config.kv_layers, len(tokens_T)
    held = {(layer, head): np.zeros((T, T), dtype=bool) for layer in layers for head in range(subject.config.n_kv_head)}
    for t in range(T):
        reader.read(tokens_T[None, t : t + 1])
        for layer, head in held:
            positions_GS = reader.positions(layer)[0]
            held[layer, head][t, positions_GS[min(head, len(positions_GS) - 1)]] = True
    return Kept(policy=write_policy(kv), held=held)


def to_write(points: Sequence[KVPoint], label: str) -> list[KVPoint]:
    """Points of a model that nothing beats, evenly over the bits."""
    own = [p for p in points if p.model == label and p.policy != OWN]
    front = sorted((p for p, best in zip(own, frontier(own), strict=True) if best), key=lambda p: -p.bits)
    places = np.linspace(0, len(front) - 1, min(len(front), _TEXTS)).round().astype(int)
    return [front[i] for i in dict.fromkeys(places.tolist())]


def written(
    engine: Engine,
    subject: Subject,
    tokenizer: Tokenizer,
    points: Sequence[KVPoint],
    prompt_T: np.ndarray,
    *,
    tokens: int,
    seed: int = 0,
) -> list[Written]:
    """What the model writes after a prompt: first through the exact window of its context, then through each policy."""
    block = subject.config.block_size
    exact = _text(engine, subject, tokenizer, read_policy(f"window({block})"), prompt_T, tokens, seed)
    found = [Written(policy=f"window({block}), uncompressed", bits=float("nan"), text=exact, same=len(exact))]
    for point in points:
        text = _text(engine, subject, tokenizer, read_policy(point.policy), prompt_T, tokens, seed)
        same = next((i for i, (a, b) in enumerate(zip(text, exact, strict=False)) if a != b), len(exact))
        found.append(Written(policy=point.policy, bits=point.bits, text=text, same=same))
    return found


def _text(
    engine: Engine, subject: Subject, tokenizer: Tokenizer, kv: KVConfig, prompt_T: np.ndarray, tokens: int, seed: int
) -> str:
    decoder = engine.decoder(subject.model, rows=1, tokens=tokens, kv=kv)
    request = Request(prompt=prompt_T.tolist(), max_tokens=tokens, sampling=Sampling(temperature=0.8, seed=seed))
    [done] = Session(decoder, tokenizer).run([request])
    return done.text

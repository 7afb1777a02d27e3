"""How far a model reaches: one text in windows of many lengths, read on past the training context in every way that the
model has, and after some steps of training at a longer one.

The protocol: pieces of the validation text as long as the longest window, which shorter ones cut up, so that the same
targets are scored at every length. A loss is over all positions of the windows. It is compared, target by target, with
that of windows of the training context; intervals come from a bootstrap over blocks of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bonsaigpt.adapt.stretch import RopeKind, stretched_arrays, stretched_config, stretched_model
from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import (
    HiddenMemory,
    KeyValueMemory,
    KVConfig,
    MemoryConfig,
    ModelConfig,
    RunConfig,
    derive,
    memory_flaw,
)
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import reading
from bonsaigpt.measure.statistics import bootstrap
from bonsaigpt.train.schedule import schedule_share

__all__ = ["ContextPoint", "Reach", "Trained", "Way", "edges", "ways"]

Advance = Callable[[str, int, int, str], None]
"""What is under way, how much of it is done, of how much, and a note."""

_SINKS = 4
"""First tokens that stay (Xiao et al. 2024)."""
_CHUNK = 16
"""Tokens that are read at once through a cache, or from raw text."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to read more than the training context: at most one of the three is set."""

    name: str
    rope: RopeKind | None = None
    """How rotary positions are scaled for it."""
    kv: KVConfig | None = None
    """A cache that forgets, the same in training and afterwards."""
    memory: MemoryConfig | None = None
    """What is carried from block to block."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the window is seen at once: then training can go on with it."""
        return self.kv is None and self.memory is None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run whose training can go on."""

    config: RunConfig
    optimizer: Arrays
    open: Callable[[RunConfig], BatchSource]
    """The data of a configuration."""


@dataclass(frozen=True, kw_only=True)
class ContextPoint:
    """One way at one length, after so many steps of training at it."""

    way: str
    length: int
    steps: int
    loss: float
    """Over all positions of the windows, nats a token."""
    added: float
    """To windows of the training context, for the same targets."""
    low: float
    high: float
    """95 % interval of ``added``."""
    by_position: Sequence[float]
    """Mean losses between ``edges``."""
    behind: tuple[float, float, float] | None = None
    """Loss above that of a model trained at this length, with its interval, where there is one."""


def ways(config: ModelConfig, trained: MemoryConfig | None = None) -> list[Way]:
    """All that a model has, the one that changes nothing first. ``trained``: the memory of its training."""
    block, position = config.block_size, config.position.kind
    found = [Way(name="interpolated" if position == "learned" else "as it is")]
    if position == "rope":
        kinds: list[RopeKind] = ["linear", "ntk", "yarn"]
        own = stretched_model(config, 2 * block)
        found += [Way(name=k, rope=k) for k in kinds if stretched_model(config, 2 * block, k) != own]
    if position == "learned":
        return found
    words = [f"window({block})", f"sinks({_SINKS})+window({max(1, block - _SINKS)})"]
    if position == "rope":
        words.append(f"{words[-1]}, positions=slot")
    policies = {name: read_policy(f"{name}, chunk={min(_CHUNK, block)}") for name in words}
    found += [Way(name=name, kv=kv) for name, kv in policies.items() if _fits(kv, config)]
    remember = HiddenMemory if trained is not None and trained.kind == "hidden" else KeyValueMemory
    memories = [remember(length=blocks * block) for blocks in (1, 2, 4)]
    fitting = [m for m in memories if memory_flaw(m, config) is None]
    return found + [Way(name=f"memory of {m.length}", memory=m) for m in fitting]


def _fits(kv: KVConfig, config: ModelConfig) -> bool:
    try:
        kv.check(config)
    except ValueError:
        return False
    return True


def edges(length: int, block: int) -> list[int]:
    """Where the places of a curve over positions begin, and where the last one ends: twice as wide each up to the
    training context, then half of it."""
    inside = [0] + [1 << i for i in range(length.bit_length()) if 1 << i < min(block, length)]
    return [*inside, *range(block, length, max(1, block // 2)), length]


class Reach:
    """A model, pieces of a text, and what was read of them.

    Args:
        streams_RT1: token ids of R pieces, (R, T + 1); each of ``lengths`` divides T, which is the last one.
    """

    def __init__(
        self,
        engine: Engine,
        config: ModelConfig,
        weights: Arrays,
        streams_RT1: np.ndarray,
        lengths: Sequence[int],
    ) -> None:
        self.config = config
        self.home = max((n for n in lengths if n <= config.block_size), default=lengths[0])
        """The length that all others are held against."""
        self.plain = ways(config)[0]
        """The way that changes nothing."""
        self._engine, self._weights, self._streams, self._lengths = engine, weights, streams_RT1, lengths
        self._model = engine.model(config, weights)
        self._found: dict[tuple[str, int], np.ndarray] = {}
        self._goal: tuple[int, np.ndarray] | None = None

    def read_all(self, ways: Sequence[Way], *, advance: Advance) -> None:
        """In these ways, the plain one among them, at all lengths; in others than that past the training context alone,
        where they differ."""
        block = self.config.block_size
        jobs = [(way, n) for way in ways for n in self._lengths if way == self.plain or n > block]
        for number, (way, length) in enumerate(jobs):
            advance("reading", number, len(jobs), f"{way.name}, {length:,} tokens")
            self._found[way.name, length] = self.read(way, length)

    def plainly(self, length: int) -> np.ndarray:
        """Losses (R, T) of the plain way in windows of so many tokens, which have been read."""
        return self._found[self.plain.name, length]

    def hold_against(self, length: int, goal_RT: np.ndarray) -> None:
        """Points at this length tell from now on how far behind they are."""
        self._goal = length, goal_RT

    def points(self) -> list[ContextPoint]:
        """Of all that was read."""
        return [self._point(*key, losses) for key, losses in self._found.items()]

    def read(self, way: Way, length: int) -> np.ndarray:
        """Losses (R, T) of all targets, in windows of so many tokens."""
        block, engine = self.config.block_size, self._engine
        tokens, targets = self._cut(length)
        if way.kv is not None:
            pieces = np.concatenate((tokens, targets[:, -1:]), axis=1)
            found = reading(engine, self._model, self.config, way.kv, pieces, chunk=way.kv.chunk).losses_RT
        elif way.memory is not None:
            memory = engine.memory(self.config, way.memory, rows=len(tokens))
            parts = [slice(at, min(at + block, length)) for at in range(0, length, block)]
            found = [engine.losses(self._model, tokens[:, p], targets[:, p], memory=memory) for p in parts]
            found = np.concatenate(found, axis=1)
        elif length <= block:
            found = engine.losses(self._model, tokens, targets)
        else:
            config = stretched_model(self.config, length, way.rope)
            weights = stretched_arrays(self._weights, self.config, config)
            found = engine.losses(engine.model(config, weights), tokens, targets)
        return found.reshape(len(self._streams), -1)

    def raw_point(self, *, advance: Callable[[int, int], None]) -> ContextPoint:
        """Each token from the training context before it, read anew from raw text: the best use of that context. It
        takes as many times longer as the context is long."""
        block, (R, T) = self.config.block_size, self._streams[:, 1:].shape
        found, begin = np.empty((R, T)), min(block, T)
        tokens, targets = self._streams[:, :begin], self._streams[:, 1 : begin + 1]
        found[:, :begin] = self._engine.losses(self._model, tokens, targets)
        for row in range(R if begin < T else 0):
            windows = np.lib.stride_tricks.sliding_window_view(self._streams[row], block)
            found[row, begin:] = self._engine.losses(self._model, windows[1:-1], windows[2:])[:, -1]
            advance(row + 1, R)
        return self._point(f"the {block} tokens before, from raw text", T, found)

    def trained_point(
        self, trained: Trained, way: Way, length: int, steps: int, *, advance: Callable[[int, int], None]
    ) -> ContextPoint:
        """Windows of ``length`` after so many steps at it, as `bonsai stretch` makes them."""
        config = stretched_config(trained.config, length, rope=way.rope, steps=steps)
        config = derive(config, train={"workers": 1, "compile": "off"})  # nothing is left to the clock
        engine, source = self._engine, trained.open(config)
        arrays = [stretched_arrays(a, self.config, config.model) for a in (self._weights, trained.optimizer)]
        state = engine.restore(config, *arrays)
        for step in range(steps):
            share, batch = schedule_share(config, step), source.batch_at(step)
            engine.step(state, batch, config=config, share=share, step=step)
            advance(step + 1, steps)
        tokens, targets = self._cut(length)
        losses_RT = engine.losses(engine.model_of(state), tokens, targets).reshape(len(self._streams), -1)
        return self._point(way.name, length, losses_RT, steps=steps)

    def _point(self, name: str, length: int, losses_RT: np.ndarray, *, steps: int = 0) -> ContextPoint:
        added_RT = losses_RT - self.plainly(self.home)
        low, high = bootstrap(added_RT)
        by_length = losses_RT.reshape(-1, length)
        places = edges(length, self.config.block_size)
        behind = None
        if self._goal is not None and self._goal[0] == length:
            behind_RT = losses_RT - self._goal[1]
            behind = float(behind_RT.mean()), *bootstrap(behind_RT)
        return ContextPoint(
            way=name,
            length=length,
            steps=steps,
            loss=float(losses_RT.mean()),
            added=float(added_RT.mean()),
            low=low,
            high=high,
            by_position=[float(by_length[:, a:b].mean()) for a, b in pairwise(places)],
            behind=behind,
        )

    def _cut(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of all windows, (N, length)."""
        streams = self._streams
        return streams[:, :-1].reshape(-1, length), streams[:, 1:].reshape(-1, length)

"""What a cache costs in bits and in loss: one text, one model and its variants, many policies, all read through the
deployed cache.

The protocol: contiguous pieces of the validation text; only positions from the training context on are scored; losses
are paired with the best uncompressed reference, token by token, and intervals come from a bootstrap over blocks of
text. Bits are those held while the last tokens were read, over the tokens of the training context. A variant is a model
that was trained to need less; what it is compared with is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bonsaigpt.config import KVConfig, ModelConfig
from bonsaigpt.engines import Engine
from bonsaigpt.kv import read_policy, write_policy
from bonsaigpt.measure.kv import KVReading, numbers_per_token, plain_bits, read_windows, reading
from bonsaigpt.measure.statistics import bootstrap, slope, unbeaten

__all__ = ["OWN", "Bench", "KVPoint", "Reference", "Subject", "frontier", "policies", "variant_policies"]

OWN = "its own cache, 16 bits"
"""What stands for the policy of a model whose attention takes none."""

_SMALL = ("int8", "int5", "int4(hadamard)", "int3(hadamard)", "x=int4(hadamard)")
"""Formats that are tried with short windows."""

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is read."""

    label: str
    model: Any
    config: ModelConfig
    trained: KVConfig | None = None
    """The policy that it was trained with."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Everything exact, in one of the ways that this can mean past the training context."""

    name: str
    loss: float
    by_position: list[float]
    """Mean loss of each block of positions."""


@dataclass(frozen=True, kw_only=True)
class KVPoint:
    """One policy of one model."""

    model: str
    """Its label."""
    policy: str
    bits: float
    """A token of the training context."""
    factor: float
    """Times fewer than keys and values of the training context in 16 bits."""
    loss: float
    added: float
    """To the best reference, nats a token."""
    low: float
    high: float
    """95 % interval of ``added``."""
    kl: float
    kl_99: float
    """The 99th percentile."""
    agree: float
    """Share of tokens at which the likeliest one is the reference's."""
    by_position: list[float]
    slope: float
    """Of the added loss over the scored positions: nats from their begin to their end."""
    slope_margin: float | None
    """Half of its 95 % interval, from the spread between pieces; None of one piece."""


def policies(config: ModelConfig) -> list[str]:
    """What is tried by default: floors, formats, choices of tokens, and products of both."""
    block, width = config.block_size, config.head_width
    half, quarter, eighth = (max(4, block // n) for n in (2, 4, 8))
    fine = f"group={16 if width % 16 == 0 else width}"
    whole = f"window({block})"
    found = [f"window({n}), bf16" for n in (block, half, quarter, eighth)]
    formats = ["int8", "e4m3", "e5m2", "int6", "int5", "int4", "int4(hadamard)", "int3", "int3(hadamard)"]
    formats += [f"int3({fine})", f"int2({fine})", f"int2({fine}, hadamard)", f"ternary({fine})", f"sign({fine})"]
    found += [f"{whole}, {form}" for form in formats]
    group = max(2, eighth)
    found.append(f"{whole}, k=int2(axis=channel, group={group}, residual={group}), v=int2({fine}, residual={group})")
    found += [f"{whole}, x={form}" for form in ("int8", "int4", "int4(hadamard)")]
    for budget in (half, quarter):
        sinks, near = max(1, budget // 8), max(2, budget // 2)
        rest = budget - sinks - near
        found.append(f"sinks({sinks})+window({budget - sinks}), bf16")
        for rule in ("h2o", "tova", "keynorm", "random", "snapkv"):
            more = f", queries={min(8, near)}" if rule == "snapkv" else ""
            found.append(f"sinks({sinks})+window({near})+{rule}({rest}{more}), bf16")
    for window in (half, quarter, eighth):
        found += [f"window({window}), {form}" for form in _SMALL]
    if config.position.kind == "rope":
        found += [f"sinks(4)+window({block - 4}), bf16, positions=slot", f"{whole}, bf16, positions=slot"]
    return list(dict.fromkeys(found))  # of a short block some are the same


def variant_policies(subject: Subject) -> list[KVConfig | None]:
    """What is tried of a variant: the policy that it was trained with, everything in 16 bits, and short windows in few
    bits; of attention that takes no policy its own cache."""
    if subject.config.attention.kind != "softmax":
        return [None]
    block = subject.config.block_size
    found = [] if subject.trained is None else [subject.trained]
    words = [f"window({block}), bf16"]
    words += [f"window({max(4, block // n)}), {form}" for n in (2, 4) for form in ("bf16", *_SMALL)]
    return [*found, *(kv for kv in map(read_policy, words) if kv not in found)]


class Bench:
    """Pieces of a text, and the references that policies are held against.

    Args:
        base: the model of the study.
        streams_RT1: token ids of R pieces, (R, T + 1), longer than the model's block.
        chunk: tokens read at once; those are counted at 16 bits.
        variants: read besides. Those that keep as much as the base and were trained without a policy are references.
    """

    def __init__(
        self,
        engine: Engine,
        base: Subject,
        streams_RT1: np.ndarray,
        *,
        chunk: int,
        variants: Sequence[Subject] = (),
    ) -> None:
        self.base, self.chunk = base, chunk
        whole = numbers_per_token(base.config)
        self._plain = [
            one
            for one in variants
            if one.trained is None and one.config.attention.kind == "softmax" and numbers_per_token(one.config) >= whole
        ]
        self._engine, self._streams = engine, streams_RT1
        self.first = base.config.block_size
        self.references: list[Reference] = []
        self._best: KVReading | None = None

    @property
    def tokens(self) -> int:
        """Targets that are scored."""
        return len(self._streams) * (self._streams.shape[1] - 1 - self.first)

    def refer(self, *, windows: bool, advance: Advance) -> None:
        """Read the references; the one of least loss is what policies are compared with.

        Args:
            windows: also read the window before each token from raw text, which takes ``block_size`` times as long.
        """
        block = self.first
        found: list[tuple[str, KVReading]] = []
        for subject in (self.base, *self._plain):
            of = "" if subject is self.base else f"{subject.label}: "
            names = {f"{of}window({block}) through the cache": f"window({block})"}
            if subject.config.position.kind != "learned":
                names = {f"{of}everything, positions running on": "full"} | names
            for name, words in names.items():
                read = self._read(subject, read_policy(words), chunk=16, keep_logits=True, advance=advance, name=name)
                found.append((name, read))
            if windows:
                name = f"{of}the {block} tokens before, from raw text"
                found.append((name, self._read(subject, None, chunk=1, advance=advance, name=name)))
        self.references = [
            Reference(name=name, loss=self._mean(r.losses_RT), by_position=self._curve(r.losses_RT))
            for name, r in found
        ]
        best = min(range(len(found)), key=lambda i: self.references[i].loss)
        self._best, self.best = found[best][1], self.references[best]

    def measure(self, kv: KVConfig | None, subject: Subject | None = None) -> KVPoint:
        """One policy against the best reference; of the base if nothing else is said. None: the model's own cache, by
        windows that are read anew for each token."""
        assert self._best is not None
        subject = subject or self.base
        read = self._read(subject, kv, chunk=self.chunk, reference_RTV=self._best.logits_RTV)
        assert read.kl_RT is not None
        assert read.agree_RT is not None
        added_RT = (read.losses_RT - self._best.losses_RT)[:, self.first :]
        low, high = bootstrap(added_RT)
        kl_RT = read.kl_RT[:, self.first :]
        drift, margin = slope(added_RT)
        return KVPoint(
            model=subject.label,
            policy=OWN if kv is None else write_policy(kv),
            bits=read.bits / self.first,
            factor=plain_bits(self.base.config, self.first) / read.bits,
            loss=self._mean(read.losses_RT),
            added=float(added_RT.mean()),
            low=low,
            high=high,
            kl=float(kl_RT.mean()),
            kl_99=float(np.quantile(kl_RT, 0.99)),
            agree=float(read.agree_RT[:, self.first :].mean()),
            by_position=self._curve(read.losses_RT),
            slope=drift,
            slope_margin=margin,
        )

    def quick(self, kv: KVConfig) -> tuple[float, float]:
        """Added loss and bits a token of the context, without the rest: for a search."""
        assert self._best is not None
        read = self._read(self.base, kv, chunk=self.chunk)
        added = (read.losses_RT - self._best.losses_RT)[:, self.first :].mean()
        return float(added), read.bits / self.first

    def _read(
        self,
        subject: Subject,
        kv: KVConfig | None,
        *,
        chunk: int,
        reference_RTV: np.ndarray | None = None,
        keep_logits: bool = False,
        advance: Advance = lambda *_: None,
        name: str = "",
    ) -> KVReading:
        settings: dict[str, Any] = {"reference_RTV": reference_RTV, "advance": _following(advance, name)}
        if kv is None:
            return read_windows(
                self._engine, subject.model, subject.config, self._streams, first=self.first, **settings
            )
        return reading(
            self._engine,
            subject.model,
            subject.config,
            kv,
            self._streams,
            chunk=chunk,
            keep_logits=keep_logits,
            **settings,
        )

    def _mean(self, losses_RT: np.ndarray) -> float:
        return float(losses_RT[:, self.first :].mean())

    def _curve(self, losses_RT: np.ndarray) -> list[float]:
        block = self.first
        starts = range(0, losses_RT.shape[1] - block + 1, block)
        return [float(losses_RT[:, at : at + block].mean()) for at in starts]


def frontier(points: Sequence[KVPoint]) -> list[bool]:
    """Of each point whether no other has fewer bits and no more loss, or as few and less."""
    return unbeaten([(point.bits, point.added) for point in points])


def _following(advance: Advance, name: str) -> Callable[[int, int], None]:
    return lambda done, total: advance(name, done, total)

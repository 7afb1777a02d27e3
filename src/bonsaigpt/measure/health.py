"""Gradient health: what is measured now and then while a model trains, and when it is bad news.

Definitions are in ``Health``, thresholds and words in ``_SIGNS``; docs/health.md says what to do. NumPy only: an engine
gives sums and norms (``torch_engine/health.py``), for ``LOOKS`` of the model's activation function.

An activation function has two ends. Below ``off`` it gives next to nothing and lets no gradient through: a unit that is
there at every token is dead. Above ``far`` it is as good as straight: its slope is within 1.2 % of what it tends to.
A unit that works there is saturated: it bends nothing, so it adds nothing that a linear map could not. GELU is at both
ends at 3 and -3, SiLU, SwiGLU's gate, at 6 and -6. A squared ReLU is off from 0 down, exactly, and never straight; a
unit that is on at every token is saturated all the same, as it has become a plain square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bonsaigpt.config import HealthConfig, ModelConfig
from bonsaigpt.spec import parameters
from bonsaigpt.structure import structures
from bonsaigpt.trace import Look

__all__ = [
    "LOOKS",
    "Finding",
    "Health",
    "Monitor",
    "effective_rank",
    "effective_terms",
    "look_for",
    "relative_entropy",
    "short_name",
]


@dataclass(frozen=True)
class _Ends:
    off: float
    far: float
    most: float
    """Share of the tokens beyond ``far`` above which a unit counts as saturated. Pre-activations that are spread evenly
    around 0, but so far that they jump over the bend, come near a half."""


LOOKS = {"gelu": _Ends(-3.0, 3.0, 0.4), "swiglu": _Ends(-6.0, 6.0, 0.4), "relu2": _Ends(0.0, 0.0, 0.99)}
"""Of the gate where there is one (swiglu), else of c_fc's output."""


def look_for(model: ModelConfig, config: HealthConfig) -> Look:
    """What to ask a step of a run."""
    ends = LOOKS[model.one_mlp.kind]
    return Look(tokens=config.tokens, off=ends.off, far=ends.far)


def effective_rank(matrix: np.ndarray) -> float:
    """(sum s^2)^2 / sum s^4 over the singular values s: the participation ratio, between 1 and the rank.

    It is exp of the Renyi entropy of order 2 of the shares of energy s^2 / sum s^2, and no more than exp of their
    Shannon entropy, which Roy and Vetterli (2007) take of s / sum s: that one needs every singular value, this one a
    product of the matrix with itself. Fresh square Gaussian matrices have half their side, flat ones (1 by 4) 0.8.
    """
    squares = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum()) if squares.any() else 0.0


def effective_terms(shares: Iterable[float | None]) -> float | None:
    """Of how many terms a sum of Kronecker products (or of rank-1 matrices) really is, as a share of those that it
    has: the participation ratio of their energies, 1 / sum of squared shares, over their number. None if unknown."""
    known = [share for share in shares if share is not None]
    squares = sum(share**2 for share in known)
    return 1.0 / squares / len(known) if squares > 0 else None


def relative_entropy(shares: np.ndarray) -> float:
    """Entropy of the shares of attention that a query gives to the tokens it may see, over the largest, log n: 1 if it
    looks at all alike, 0 if at one alone."""
    p = shares[shares > 0]
    return float(-(p * np.log(p)).sum() / math.log(len(shares)))


def short_name(parameter: str) -> str:
    """``transformer.h.3.mlp.c_fc.weight`` as ``h.3.mlp.c_fc``."""
    return parameter.removeprefix("transformer.").replace(".weight", "")


@dataclass(frozen=True, kw_only=True)
class Health:
    """One look, after a step. Names are ``short_name``s; numbers that are not finite are None."""

    step: int
    tokens: int
    """Whose activations were looked at."""
    grad_norm: dict[str, float | None]
    """Of each parameter's gradient, before clipping."""
    grad_rms: dict[str, float | None]
    """The same over the root of the number of values."""
    update_ratio: dict[str, float | None]
    """Norm of the step's update over the norm of the weight; None while that is 0."""
    effective_rank: dict[str, float | None]
    """Of each weight, dense or made of factors, as a share of the highest rank that it can have."""
    dead: list[float | None]
    """For each block: share of the hidden units that were active at no token."""
    saturated: list[float | None]
    """For each block: share of the hidden units that were beyond the bend at more than 40 % of the tokens, or, of
    squared ReLUs, on at more than 99 %."""
    entropy: list[list[float | None]]
    """For each block and head: mean entropy of its attention as a share of the largest; see ``relative_entropy``.
    A learned sink counts as one token more; linear attention has no softmax, so no heads are listed."""
    balance: dict[str, float | None]
    """Of each weight made of factors: log10 of the first factor's norm over the second's, median over the terms. The
    product stays the same when one grows and the other shrinks: it is a gauge, but rates and decay act on each."""
    energy: dict[str, list[float | None]]
    """Of each weight made of factors: share of each term in the sum of their squared norms, in their order."""

    @classmethod
    def of(cls, figures: Mapping[str, np.ndarray], model: ModelConfig, *, step: int) -> Health:
        """From what an engine's step told (``Checkup`` names the figures)."""
        table = [p for p in parameters(model) if p.tied_to is None]
        names = [short_name(p.name) for p in table]
        roots = np.sqrt([p.size for p in table])
        most = LOOKS[model.one_mlp.kind].most
        layers = range(model.n_layer)
        found = {kind: _under(figures, kind) for kind in ("rank", "terms")}
        ranks = {name: structure.rank for name, structure in structures(model).items()}
        energies = {name: np.prod(norms.astype(np.float64), axis=0) ** 2 for name, norms in found["terms"].items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # a factor, or all of them, may be zero
            ratios = {name: np.median(np.log10(norms[0] / norms[1])) for name, norms in found["terms"].items()}
            shares = {name: energy / energy.sum() for name, energy in energies.items()}
        return cls(
            step=step,
            tokens=int(figures["tokens"][0]),
            grad_norm=_named(names, figures["grad_norm"]),
            grad_rms=_named(names, figures["grad_norm"] / roots),
            update_ratio=_named(names, figures["update"]),
            effective_rank={
                short_name(n): _finite(found["rank"][n][0] / rank) for n, rank in ranks.items() if n in found["rank"]
            },
            dead=[_finite((figures[f"on/{i}"] == 0).mean()) for i in layers],
            saturated=[_finite((figures[f"far/{i}"] > most).mean()) for i in layers],
            entropy=[[_finite(value) for value in figures.get(f"entropy/{i}", ())] for i in layers],
            balance={short_name(name): _finite(value) for name, value in ratios.items()},
            energy={short_name(name): [_finite(share) for share in value] for name, value in shares.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """A line of ``health.jsonl``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Health:
        """What ``as_dict`` gave.

        Raises:
            KeyError: it is no such line.
        """
        return cls(**{field.name: line[field.name] for field in fields(cls)})


def _under(figures: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{kind}/"): value for name, value in figures.items() if name.startswith(f"{kind}/")}


def _named(names: Iterable[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in zip(names, values, strict=True)}


def _finite(value: Any) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


# ------------------------------------------------------------------ bad news

_DEAD, _SATURATED = 0.4, 0.25
_SHARPEST = 0.01
_FASTEST = 0.5
_SILENT = 1e-8
_DIRECTIONS = 1.5
_DRIFT = 2.0
_IDLE, _IDLE_SHARE = 1e-4, 0.5
_LOOKS = 2
"""In a row that must agree: one batch may be odd."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something is wrong with a part of the model."""

    sign: str
    """Which of the signs, e.g. ``dead``."""
    part: str
    """Of which part, e.g. ``h.3.mlp.c_fc``."""
    words: str
    """What, in one sentence."""
    remedy: str
    """What to do about it."""
    first: int
    """The step of the look at which it began."""
    last: int
    """The step of the look at which it was last seen."""

    @property
    def sentence(self) -> str:
        """``c_fc of block 3: 61 % of units never active ...; try ...``"""
        return f"{self.words}; {self.remedy}"


class Monitor:
    """What a run's looks, one after the other, say. Blocks are counted from 0, as in the names of parameters."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._first: Health | None = None
        self._suspects: dict[tuple[str, str], int] = {}
        """The looks in a row at which a sign was seen."""
        self._began: dict[tuple[str, str], int] = {}
        self.findings: dict[tuple[str, str], Finding] = {}
        """All so far, also those that have passed; the words are of the worst moment's look, the last one."""

    def add(self, health: Health) -> list[Finding]:
        """Take one more look; the findings that begin with it."""
        self._first = self._first or health
        seen = {(sign, part): (words, remedy) for sign, part, words, remedy in _signs(health, self._first, self._model)}
        self._suspects = {key: self._suspects.get(key, 0) + 1 for key in seen}
        begun: list[Finding] = []
        for key, count in self._suspects.items():
            if count == 1:
                self._began[key] = health.step
            if count < _LOOKS:
                continue
            words, remedy = seen[key]
            known = self.findings.get(key)
            first = known.first if known is not None else self._began[key]
            finding = Finding(sign=key[0], part=key[1], words=words, remedy=remedy, first=first, last=health.step)
            self.findings[key] = finding
            if known is None:
                begun.append(finding)
        return begun


def _signs(health: Health, first: Health, model: ModelConfig) -> Iterable[tuple[str, str, str, str]]:
    """(sign, part, words, remedy) of all that looks wrong."""
    for sign in _SIGNS:
        for part, words, remedy in sign(health, first, model):
            yield sign.__name__.strip("_"), part, words, remedy


_Signs = Iterable[tuple[str, str, str]]
_LESS_LR = "try a lower --optim.lr or a longer --optim.schedule.warmup"


def _dead(health: Health, first: Health, model: ModelConfig) -> _Signs:
    gate = "c_gate" if model.one_mlp.kind == "swiglu" else "c_fc"
    for layer, share in enumerate(health.dead):
        if share is not None and share >= _DEAD:
            words = f"{gate} of block {layer}: {share:.0%} of units never active at {health.tokens:,} tokens"
            remedy = f"nothing comes back to them, so they stay so: {_LESS_LR}"
            if model.experts > 1:
                remedy += ", or where no token came to an expert a larger --model.mlp.balance"
            elif model.one_mlp.kind == "relu2":
                remedy += ", or --model.mlp.kind gelu"
            yield f"h.{layer}.mlp.{gate}", words.replace("%", " %"), remedy


def _saturated(health: Health, first: Health, model: ModelConfig) -> _Signs:
    gate = "c_gate" if model.one_mlp.kind == "swiglu" else "c_fc"
    for layer, share in enumerate(health.saturated):
        if share is not None and share >= _SATURATED:
            words = f"{gate} of block {layer}: {share:.0%} of units saturated at {health.tokens:,} tokens"
            remedy = f"they bend nothing any more, as their inputs are too large: {_LESS_LR}, or more weight decay"
            yield f"h.{layer}.mlp.{gate}", words.replace("%", " %"), remedy


def _collapsed(health: Health, first: Health, model: ModelConfig) -> _Signs:
    for layer, heads in enumerate(health.entropy):
        if heads and all(value is not None and value < _SHARPEST for value in heads):
            words = f"attention of block {layer}: every head looks at one token alone (entropy under 1 % of uniform)"
            yield (
                f"h.{layer}.attn",
                words,
                f"queries and keys have grown: --model.attention.qk_norm true, or {_LESS_LR}",
            )


def _silent(health: Health, first: Health, model: ModelConfig) -> _Signs:
    weights = {name: value for name, value in health.grad_rms.items() if _is_map(name) and value is not None}
    usual = float(np.median(list(weights.values()))) if weights else 0.0
    for name, value in weights.items():
        if usual > 0 and value < _SILENT * usual:
            words = f"{_worded(name)}: no gradient reaches it"
            yield name, words, "it cannot learn: look for zeros behind it (two zero factors stay zero), or dead units"


def _rushed(health: Health, first: Health, model: ModelConfig) -> _Signs:
    for name, value in health.update_ratio.items():
        if _is_map(name) and value is not None and value > _FASTEST:
            words = f"{_worded(name)}: one step changes it by {value:.0%} of its size".replace("%", " %")
            yield name, words, f"nothing that it has learned can last: {_LESS_LR}"


def _flat(health: Health, first: Health, model: ModelConfig) -> _Signs:
    ranks = {short_name(name): structure.rank for name, structure in structures(model).items()}
    for name, share in health.effective_rank.items():
        if share is not None and _is_map(name) and ranks[name] >= 16 and 0 < share * ranks[name] < _DIRECTIONS:
            words = f"{_worded(name)}: one direction outweighs all others (effective rank {share * ranks[name]:.1f})"
            yield name, words, f"{_LESS_LR}, or --optim.matrices.kind muon"


def _drifted(health: Health, first: Health, model: ModelConfig) -> _Signs:
    for name, value in health.balance.items():
        start = first.balance.get(name)
        if value is not None and start is not None and abs(value - start) >= _DRIFT:
            grown = "first" if value > start else "second"
            words = f"{_worded(name)}: its {grown} factor has grown {10 ** abs(value - start):,.0f}-fold over the other"
            yield (
                name,
                words,
                "the product is the same, the rates are not: rescale the factors, or give both weight decay",
            )


def _idle(health: Health, first: Health, model: ModelConfig) -> _Signs:
    for name, shares in health.energy.items():
        known = np.array([share for share in shares if share is not None])
        idle = float((known < _IDLE / max(1, len(known))).mean()) if len(known) > 1 else 0.0
        if idle >= _IDLE_SHARE:
            words = f"{_worded(name)}: {round(idle * len(known))} of {len(known)} terms carry nothing"
            yield name, words, "as few terms would do: save their parameters, or start them from larger values"


_SIGNS: tuple[Callable[[Health, Health, ModelConfig], _Signs], ...] = (
    _dead,
    _saturated,
    _collapsed,
    _silent,
    _rushed,
    _flat,
    _drifted,
    _idle,
)


def _is_map(name: str) -> bool:
    """Whether it is a weight inside a block, or a factor of one, and no scale or bias."""
    return (".attn." in name or ".mlp." in name) and not name.endswith((".bias", ".s"))


def _worded(name: str) -> str:
    """``h.3.mlp.c_fc.A`` as ``A of c_fc of block 3``; ``c_proj`` says of which branch."""
    _, layer, branch, weight, *factor = name.split(".")
    weight = f"{branch} c_proj" if weight == "c_proj" else weight
    return "".join(f"{part} of " for part in factor) + f"{weight} of block {layer}"

"""A plan carried out: one block after the other is replaced, each calibrated on what is compressed before it.

A block is one branch of a layer. Its maps are fitted in the order of the forward pass to the inputs that they now get,
and to the outputs that would bring the residual stream back to the teacher's (``Moments.best``); then the loss is
measured. If that rose by more than is allowed, the block is taken back and tries a larger size of the same shape, and
stays dense if none will do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bonsaigpt.compress.fit import fit, fit_rows, pruned
from bonsaigpt.compress.narrow import cut_hidden, units_to_keep
from bonsaigpt.compress.permute import like_units, permute_hidden
from bonsaigpt.compress.plan import Plan, block_of, blocks_of, is_map
from bonsaigpt.compress.subject import Advance, Subject, silent
from bonsaigpt.config import (
    DenseStructure,
    KroneckerStructure,
    LowRankStructure,
    ModelConfig,
    MonarchStructure,
    NarrowStructure,
    StructureConfig,
)
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.spec import initial_value, parameter_count, parameters
from bonsaigpt.structure import Arrays, Kronecker, Structure, make, structures

__all__ = ["Compressed", "Step", "replace_blocks"]

_GROWTH = 1.5
"""A block that costs too much tries so many times as many values."""
_DISTILLED_STEPS = 200

Settings = dict[str, StructureConfig]


@dataclass(frozen=True)
class Step:
    """One block, replaced or not."""

    block: str
    settings: Mapping[str, StructureConfig]
    """What its weights became in the end."""
    stored: int
    """Values of the whole model afterwards, each counted once."""
    loss: float
    """On the validation split afterwards, nats a token."""
    cost: float
    """Nats that it added."""
    attempts: int
    """More than one: smaller sizes were taken back."""
    seconds: float


@dataclass(frozen=True)
class Compressed:
    """The model that came of a plan."""

    config: ModelConfig
    values: Arrays
    """Factors and all else, under the names of the spec."""
    dense_loss: float
    steps: tuple[Step, ...]

    @property
    def loss(self) -> float:
        """On the validation split, nats a token, before any healing."""
        return self.steps[-1].loss if self.steps else self.dense_loss


def replace_blocks(
    subject: Subject,
    plan: Plan,
    *,
    allowed: Callable[[int, int], float] | None = None,
    advance: Advance = silent,
    tell: Callable[[Step], None] = lambda step: None,
    seed: int = 0,
) -> Compressed:
    """Carry out a plan.

    Args:
        allowed: given a block's number and the count of all, nats by which the validation loss may be above the dense
            model's after it. None: as much as it likes.
        tell: hears of each block when it is done.
        seed: of random factors.

    Raises:
        CheckpointError: the dense model's own loss is no number.
        ConfigError: the loss behind a block is none, or an initialiser cannot make a structure.
    """
    dense_loss = subject.validate(subject.model, advance)
    if not math.isfinite(dense_loss):
        raise CheckpointError(
            f"the validation loss of the model is {dense_loss} before anything is compressed: take a checkpoint of an "
            "earlier step (RUN@STEP)"
        )
    subject = _permuted(subject, plan) if plan.permute and plan.init in ("activations", "distilled") else subject
    work = _Work(subject, subject.config, dict(subject.values), {}, seed)
    loss, steps = dense_loss, list[Step]()
    blocks = blocks_of(subject.config, _named(subject.config, plan.structure))
    for number, names in enumerate(blocks):
        began, block = time.perf_counter(), block_of(names[0])
        advance("replacing blocks", number, len(blocks))
        settings: Settings = {n: s for n, s in plan.structure.items() if n in names or n == block}
        limit = dense_loss + allowed(number, len(blocks)) if allowed is not None else np.inf
        attempts, tried, found = 0, work, loss
        while settings:
            attempts += 1
            tried = work.replaced(names, settings, plan)
            found = subject.validate(tried.model(), advance)
            if not math.isfinite(found):
                raise ConfigError(
                    f"{block} loses itself as {' and '.join(s.kind for s in settings.values())}: the validation loss "
                    f"behind it is {found}, though every block before it was sound. Leave it out of --layers, or take "
                    "another --structure or --init"
                )
            if found <= limit:
                break
            settings = _larger(settings, structures(subject.config))
        if not settings:
            tried, found = work, loss  # dense after all
        stored = parameter_count(tried.factored_config())
        steps.append(Step(block, settings, stored, found, found - loss, attempts, time.perf_counter() - began))
        tell(steps[-1])
        work, loss = tried, found
    advance("replacing blocks", len(blocks), len(blocks))
    return Compressed(work.factored_config(), work.factored_values(), dense_loss, tuple(steps))


@dataclass(frozen=True)
class _Work:
    """How far the compression has come: what is replaced stands there as dense matrices, and its factors beside it."""

    subject: Subject
    config: ModelConfig
    """Of ``values``: narrow MLPs are narrow already."""
    values: Arrays
    factors: Mapping[str, tuple[StructureConfig, Arrays]]
    seed: int

    def model(self) -> object:
        return self.subject.engine.model(self.config, self.values)

    def factored_config(self) -> ModelConfig:
        made = {name: setting for name, (setting, _) in self.factors.items()}
        return self.config.model_copy(update={"structure": {**self.config.structure, **made}})

    def factored_values(self) -> Arrays:
        rest = {name: value for name, value in self.values.items() if name not in self.factors}
        made = structures(self.factored_config())
        for name, (_, own) in self.factors.items():
            rest |= {factor.key(name): own[factor.name].astype(np.float32) for factor in made[name].factors}
        return {p.name: rest[p.name] for p in parameters(self.factored_config()) if p.tied_to is None}

    def replaced(self, names: Sequence[str], settings: Settings, plan: Plan) -> _Work:
        """With one block more."""
        work, block = self, block_of(names[0])
        aware = plan.init in ("activations", "distilled")
        if isinstance(narrow := settings.get(block), NarrowStructure):
            work = work._narrowed(block, narrow, aware)
        # Maps that read the same input are seen in one pass.
        outer = [n for n in names if n.endswith(".c_proj.weight")]
        for together in ([n for n in names if n not in outer], outer):
            own = [n for n in together if n in settings or (block in settings and n in outer)]
            if not own:
                continue
            maps = [n for n in own if is_map(self.config, n)]
            moments = self.subject.moments(maps, work.model()) if aware and maps else {}
            for name in own:
                W, C = work.values[name].astype(np.float64), None
                if name in moments:
                    W, C = moments[name].best(W), moments[name].C
                work = work._with(name, settings.get(name), W, C, plan)
        if plan.init == "distilled" and block.endswith(".mlp"):
            work = work._distilled(block)
        return work

    def _with(
        self, name: str, setting: StructureConfig | None, W: np.ndarray, C: np.ndarray | None, plan: Plan
    ) -> _Work:
        if setting is None or isinstance(setting, DenseStructure | NarrowStructure):  # refitted, but as it is stored
            return replace(self, values=self.values | {name: W.astype(np.float32)})
        factors = {**self.factors, name: (setting, Arrays())}
        structure = structures(replace(self, factors=factors).factored_config())[name]
        if plan.init == "random":
            own = self._random(name, factors)
        elif name == "transformer.wte.weight" and C is None and plan.init in ("activations", "distilled"):
            own = fit_rows(structure, W, self.subject.token_shares)
        else:
            own = _fitted(name, structure, W, C, plan)
        factors[name] = (setting, own)
        matrix = structure.expand({factor: value.astype(np.float64) for factor, value in own.items()})
        return replace(self, values=self.values | {name: matrix.astype(np.float32)}, factors=factors)

    def _random(self, name: str, factors: Mapping[str, tuple[StructureConfig, Arrays]]) -> Arrays:
        """What a fresh model would start with, but nowhere at zero."""
        config = replace(self, factors=factors).factored_config().model_copy(update={"residual_init": "scaled"})
        return {
            p.name.removeprefix(f"{name}."): initial_value(p, self.seed) for p in parameters(config) if p.weight == name
        }

    def _narrowed(self, mlp: str, narrow: NarrowStructure, aware: bool) -> _Work:
        name = f"{mlp}.c_proj.weight"
        C = self.subject.moments([name], self.model())[name].C if aware else None
        kept = units_to_keep(self.values[name], C, narrow.hidden)
        config = self.config.model_copy(update={"structure": {**self.config.structure, mlp: narrow}})
        return replace(self, config=config, values=cut_hidden(self.values, mlp, kept))

    def _distilled(self, mlp: str) -> _Work:
        """With the factors of one MLP trained on what goes in and what should come out."""
        engine, subject = self.subject.engine, self.subject
        found, _ = engine.fit_mlp(
            self.factored_config(),
            self.factored_values(),
            mlp,
            subject.calibration,
            teacher=subject.model,
            steps=_DISTILLED_STEPS,
        )
        made, values, factors = structures(self.factored_config()), dict(self.values), dict(self.factors)
        for name, structure in made.items():
            if name in factors and name.startswith(f"{mlp}."):
                own = {factor.name: found.pop(factor.key(name)).astype(np.float64) for factor in structure.factors}
                factors[name] = (factors[name][0], own)
                values[name] = structure.expand(own).astype(np.float32)
        return replace(self, values=values | found, factors=factors)


def _fitted(name: str, structure: Structure, W: np.ndarray, C: np.ndarray | None, plan: Plan) -> Arrays:
    if plan.init != "pruned":
        return fit(structure, W, C)
    try:
        return pruned(structure, W)
    except ValueError as error:
        raise ConfigError(f"{error}, and {name} is to be something else: use another --init") from None


def _permuted(subject: Subject, plan: Plan) -> Subject:
    """The same function, with the hidden units of Kronecker MLPs in an order that suits their factors."""
    made = structures(subject.config.model_copy(update={"structure": dict(plan.structure)}))
    firsts = [n for n, s in made.items() if n.endswith(".mlp.c_fc.weight") and isinstance(s, Kronecker)]
    if not firsts:
        return subject
    values = subject.values
    for name, moments in subject.moments(firsts).items():
        structure = made[name]
        assert isinstance(structure, Kronecker)
        order = like_units(values[name], moments.C, structure.a_shape[0])
        values = permute_hidden(values, name.removesuffix(".c_fc.weight"), order)
    return replace(subject, values=values)


def _named(config: ModelConfig, structure: Mapping[str, StructureConfig]) -> list[str]:
    """The weights that a plan with names spelt out touches."""
    return [n for n in config.weight_shapes if n in structure or block_of(n) in structure]


def _larger(settings: Settings, dense: Mapping[str, Structure]) -> Settings:
    """Each of them in the next size, or empty if that is no smaller than dense."""
    grown: Settings = {}
    for name, setting in settings.items():
        match setting:
            case KroneckerStructure():
                larger = setting.model_copy(update={"terms": math.ceil(_GROWTH * setting.terms)})
            case LowRankStructure() | MonarchStructure():
                larger = setting.model_copy(update={"rank": math.ceil(_GROWTH * setting.rank)})
            case NarrowStructure():
                whole = dense[f"{name}.c_fc.weight"].out
                larger = setting.model_copy(update={"hidden": math.ceil(_GROWTH * setting.hidden)})
                if larger.hidden >= whole:
                    continue
            case _:
                continue
        if not isinstance(larger, NarrowStructure):
            try:
                larger.check(name, dense[name].out, dense[name].into)
            except ValueError:
                continue
            if make(larger, dense[name].out, dense[name].into).parameters >= dense[name].out * dense[name].into:
                continue
        grown[name] = larger
    return grown

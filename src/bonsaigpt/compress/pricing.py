"""Measuring what each weight of a model could be made into, and at what cost: the table that a plan is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from bonsaigpt.compress.candidates import at_size, calibrated, candidates, dense_candidate
from bonsaigpt.compress.narrow import cut_hidden, narrow_candidates, units_to_keep
from bonsaigpt.compress.plan import Init, Plan, is_map
from bonsaigpt.compress.planner import Option, Price, allocate, evenly, options, smallest_within
from bonsaigpt.compress.subject import Advance, Subject, silent
from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import ConfigError
from bonsaigpt.structure import Structure, structures

__all__ = ["AUTO", "KINDS", "Offer", "choose", "chosen_weights", "price"]

KINDS = ("kronecker", "kronecker+sparse", "lowrank", "monarch", "narrow")
AUTO = ("kronecker", "kronecker+sparse", "lowrank")
"""What ``auto`` chooses from: Monarch is fitted without activations, and a narrow MLP is another model."""

_LEAST_SLOPE = 1e-3
"""Nats for an error of one: where a loss did not rise at all it is noise that says so."""


@dataclass(frozen=True)
class Offer:
    """All that one weight (or MLP, for ``narrow``) may become, with prices."""

    name: str
    options: list[Option]
    tried: tuple[Option, ...]
    """Real fits of this weight alone, one for each kind, with the loss that the model really gained."""
    shapes: tuple[Option, ...] = ()
    """The largest size of every legal shape that the tried size has room for, by predicted loss."""

    @property
    def dense(self) -> Option:
        """As it is."""
        return max(self.options, key=lambda option: option.stored)


def chosen_weights(config: ModelConfig, layers: Sequence[str]) -> dict[str, Structure]:
    """The weights that globs mean, dense ones.

    Raises:
        ConfigError: a glob matches nothing, or a weight that is structured already.
    """
    made = structures(config)
    for glob in layers:
        if not any(fnmatchcase(name, glob) for name in made):
            raise ConfigError(
                f"--layers '{glob}' matches no weight of this model: they are called like {list(made)[-2]!r}; try "
                "'*.mlp.*', '*.attn.*' or '*'"
            )
    found = {name: structure for name, structure in made.items() if any(fnmatchcase(name, glob) for glob in layers)}
    for name, structure in found.items():
        if config.experts > 1 and ".mlp." in name:
            raise ConfigError(
                f"{name} belongs to experts, each of which sees its own tokens: compress the dense run and make "
                "experts of the result with --experts, or give --layers '*.attn.*'"
            )
        if structure.factored:
            raise ConfigError(
                f"{name} is structured already ({config.structure_of(name).kind}): leave it out with --layers, or "
                "start from the run that this one was made from"
            )
    return found


def price(
    subject: Subject, kinds: Sequence[str], layers: Sequence[str], share: float, *, advance: Advance = silent
) -> list[Offer]:
    """What the weights could become, in the order of the forward pass.

    Args:
        kinds: of ``KINDS``; ``narrow`` alone or not at all, as it takes whole MLPs.
        share: of its values that a weight keeps where fits and slopes are measured: the nearer to those of the plan,
            the better it predicts.
    """
    weights = chosen_weights(subject.config, layers)
    maps = [name for name in weights if is_map(subject.config, name)]
    advance("calibrating", 0, 0)
    moments = {name: found.C for name, found in subject.moments(maps).items()}
    before = subject.judge(subject.model)
    if "narrow" in kinds:
        return _price_mlps(subject, weights, moments, share, before, advance)
    offers: list[Offer] = []
    for name, structure in weights.items():
        W = subject.values[name].astype(np.float64)
        C = moments.get(name, np.eye(structure.into))
        prices, tried, shapes = list[Price](), list[Option](), list[Option]()
        for kind in kinds:
            advance("trying structures", len(offers) * len(kinds) + len(tried), len(weights) * len(kinds))
            curves = candidates(kind, W, C)
            if not curves:
                continue
            curve, candidate, matrix = calibrated(curves, int(share * W.size), W, C)
            model = subject.engine.model(subject.config, subject.values | {name: matrix.astype(np.float32)})
            gained = subject.judge(model) - before
            slope = max(gained / candidate.error, _LEAST_SLOPE) if candidate.error else _LEAST_SLOPE
            prices.append(Price(curve, candidate, slope))
            tried.append(Option(candidate, gained))
            within = [c for c in (at_size(each, int(share * W.size)) for each in curves) if c.stored <= share * W.size]
            shapes += [Option(c, slope * c.error) for c in within]
        choices = options(prices, dense_candidate(structure.out, structure.into))
        offers.append(Offer(name, choices, tuple(tried), tuple(sorted(shapes, key=lambda option: option.loss))))
    return offers


def _price_mlps(
    subject: Subject,
    weights: dict[str, Structure],
    moments: dict[str, np.ndarray],
    share: float,
    before: float,
    advance: Advance,
) -> list[Offer]:
    """The same for fewer hidden units."""
    mlps = [name.removesuffix(".c_proj.weight") for name in weights if name.endswith(".mlp.c_proj.weight")]
    if not mlps:
        raise ConfigError("`narrow` cuts hidden units, and --layers means no whole MLP: use '*.mlp.*'")
    offers: list[Offer] = []
    for mlp in mlps:
        advance("trying structures", len(offers), len(mlps))
        name, config = f"{mlp}.c_proj.weight", subject.config
        W, C = subject.values[name].astype(np.float64), moments[name]
        each = sum(len(subject.values[n][0]) for n in weights if n.startswith(f"{mlp}.") and n != name) + len(W)
        curve = narrow_candidates(W, C, each)
        candidate = max((c for c in curve if c.stored <= share * curve[0].stored), key=lambda c: c.stored)
        kept = units_to_keep(W, C, candidate.setting.hidden)
        values = cut_hidden(subject.values, mlp, kept)
        refit = np.linalg.solve(
            C[np.ix_(kept, kept)] + 1e-9 * np.trace(C) / len(C) * np.eye(len(kept)), (W @ C)[:, kept].T
        )
        values[name] = refit.T.astype(np.float32)
        narrow = config.model_copy(update={"structure": {**config.structure, mlp: candidate.setting}})
        gained = subject.judge(subject.engine.model(narrow, values)) - before
        slope = max(gained / candidate.error, _LEAST_SLOPE)
        found = [Option(c, slope * c.error) for c in curve[1:]] + [Option(curve[0], 0.0)]
        offers.append(Offer(mlp, found, (Option(candidate, gained),)))
    return offers


def choose(
    offers: Sequence[Offer],
    *,
    budget: int | None = None,
    loss: float | None = None,
    even: bool = False,
    init: Init = "activations",
) -> tuple[Plan, dict[str, Option]]:
    """The plan of least predicted loss with at most ``budget`` values in these weights, or the smallest of at most so
    much predicted ``loss`` (nats). ``even``: the budget is shared out in proportion to the weights' sizes.

    Raises:
        ConfigError: even the smallest options are larger than the budget.
    """
    choices = [offer.options for offer in offers]
    dense = sum(offer.dense.stored for offer in offers)
    if budget is None:
        found = smallest_within(choices, loss or 0.0)
    else:
        found = evenly(choices, budget / dense) if even else allocate(choices, budget)
    if found is None:
        least = sum(min(option.stored for option in each) for each in choices)
        raise ConfigError(
            f"{budget:,} values are too few for these weights, which take {least:,} at least: give a larger target, or "
            "let more weights be compressed with --layers"
        )
    chosen = {offer.name: option for offer, option in zip(offers, found, strict=True)}
    changed = {offer.name: chosen[offer.name] for offer in offers if chosen[offer.name].stored < offer.dense.stored}
    stored = sum(option.stored for option in chosen.values())
    plan = Plan(
        structure={name: option.candidate.setting for name, option in changed.items()},
        init=init,
        permute=stored <= _PERMUTED * dense,
        predicted={name: option.loss for name, option in changed.items()},
    )
    return plan, chosen


_PERMUTED = 0.35
"""Share of the values up to which like hidden units are brought together: it helps where few terms are left (LOG)."""

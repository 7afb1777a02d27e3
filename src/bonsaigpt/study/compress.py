"""Which structure a trained model should be stored in: kinds x shares x steps of healing x seeds, at equal values.

The protocol: one plan for each kind and share, the same share of every weight. A seed is an order of the training text,
for calibration and for healing, and all kinds get the same orders: differences are paired by seed. The validation split
is cut in two: on its first half the best kind is chosen, on the second all figures are reported. Every cell is scored
once, with what its last step left; no step is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bonsaigpt.compress import Subject, choose, healing_config, price, replace_blocks
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.engines import Engine
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.measure.decoding import measure_decoding
from bonsaigpt.measure.statistics import Difference, Estimate, estimate, paired_difference, unbeaten
from bonsaigpt.spec import parameter_count
from bonsaigpt.structure import Arrays
from bonsaigpt.train.schedule import schedule_share

__all__ = ["SCRATCH", "Bench", "Cell", "Losses", "against", "best_of", "frontier", "losses"]

SCRATCH = "scratch"
"""A smaller dense MLP that starts anew: what the healing steps are worth without the teacher's weights."""
_BYTES = 4
"""Of a stored value, float32."""
_HEALING_ORDER = 1000
"""Orders of the training split from here on are for healing, those before for calibration."""

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Losses:
    """Nats a token on the two halves of the validation split."""

    validation: float
    test: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind at one share after so many steps, over the seeds."""

    kind: str
    share: float
    """Of the values of the weights that are compressed, asked for."""
    heal: int
    becomes: str
    """Its first weight."""
    stored: int
    """Values of the whole model, each counted once, however often it is used."""
    losses: tuple[Losses, ...]
    """By seed."""
    dense: Losses
    """The teacher's."""
    speed: float
    """Tokens a second, one row."""

    @property
    def bytes(self) -> int:
        """In float32."""
        return _BYTES * self.stored

    @property
    def cost(self) -> Estimate:
        """Nats that the test half costs more than with the teacher, with its 95 % interval over seeds."""
        return estimate([one.test - self.dense.test for one in self.losses])

    @property
    def chosen_by(self) -> float:
        """Mean loss on the first half."""
        return sum(one.validation for one in self.losses) / len(self.losses)


def losses(engine: Engine, model: Any, source: BatchSource) -> Losses:
    """Of the first half of the validation batches, and of the rest.

    Raises:
        DataError: there is only one batch.
    """
    if source.parts:
        found = [(share, losses(engine, model, part)) for share, part in source.parts.values()]
        return Losses(sum(s * one.validation for s, one in found), sum(s * one.test for s, one in found))
    scores = [(engine.evaluate(model, batch)[0], batch.count) for batch in source.validation()]
    if len(scores) < 2:
        raise DataError("the validation split is one batch, and one half is to choose by: use more text")
    halves = scores[: len(scores) // 2], scores[len(scores) // 2 :]
    first, rest = (sum(loss for loss, _ in half) / sum(count for _, count in half) for half in halves)
    return Losses(first, rest)


def best_of(cells: Sequence[Cell]) -> Cell:
    """The one to take, by the first half of the validation split."""
    return min(cells, key=lambda cell: cell.chosen_by)


def against(cell: Cell, other: Cell) -> Difference:
    """Test loss of a cell over another's, paired by seed."""
    return paired_difference([one.test for one in cell.losses], [one.test for one in other.losses])


def frontier(cells: Sequence[Cell], size: Callable[[Cell], float]) -> list[bool]:
    """Of each cell whether no other has as small a size and loss, and one of them smaller. ``size``: less is better."""
    return unbeaten([(size(cell), cell.cost.mean) for cell in cells])


class _Unscored(Subject):
    """No block is taken back in a study, so none is scored on the way."""

    def validate(self, model: Any, advance: Any = None) -> float:
        return 0.0


@dataclass(frozen=True)
class Bench:
    """A trained model, and all that its cells share."""

    engine: Engine
    config: RunConfig
    values: Arrays
    source: BatchSource
    teacher: str | None
    """Address of the run to distil from; None: healing is from the text alone."""
    layers: tuple[str, ...] = ("*.mlp.*",)
    tokens: int = 65_536
    """To calibrate on."""
    seconds: float = 1.0
    """To decode for, each kind and share."""

    @cached_property
    def dense(self) -> Cell:
        """The teacher itself."""
        model = self.engine.model(self.config.model, self.values)
        found = losses(self.engine, model, self.source)
        return Cell(
            kind="dense",
            share=1.0,
            heal=0,
            becomes="dense",
            stored=parameter_count(self.config.model),
            losses=(found,),
            dense=found,
            speed=self._speed(model),
        )

    def cells(
        self,
        kinds: Sequence[str],
        shares: Sequence[float],
        heals: Sequence[int],
        seeds: int,
        *,
        advance: Advance = lambda *_: None,
    ) -> Iterator[Cell]:
        """Every cell of the grid, one after the other; ``SCRATCH`` has none without steps.

        Raises:
            ConfigError: a share that no structure of a kind is as small as; a weight that is structured already.
        """
        for share in shares:
            for kind in kinds:
                if kind == SCRATCH:
                    yield from self._scratch(share, [steps for steps in heals if steps], seeds, advance)
                else:
                    yield from self._compressed(kind, share, heals, seeds, advance)

    def _compressed(
        self, kind: str, share: float, heals: Sequence[int], seeds: int, advance: Advance
    ) -> Iterator[Cell]:
        offers = price(self._subject(0), (kind,), self.layers, share, advance=advance)
        plan, chosen = choose(offers, budget=int(share * sum(offer.dense.stored for offer in offers)), even=True)
        becomes = chosen[offers[0].name].candidate.words
        found: dict[int, list[Losses]] = {steps: [] for steps in heals}
        speed = stored = 0
        for seed in range(seeds):
            compressed = replace_blocks(self._subject(seed), plan, advance=advance)
            if not seed:
                model = self.engine.model(compressed.config, compressed.values)
                speed, stored = self._speed(model), parameter_count(compressed.config)
            for steps in heals:
                config = healing_config(self.config, compressed, steps=max(1, steps), teacher=self.teacher)
                model = self._trained(config, compressed.values, steps, seed, advance)
                found[steps].append(losses(self.engine, model, self.source))
        for steps in heals:
            yield self._cell(kind, share, steps, becomes, stored, found[steps], speed)

    def _scratch(self, share: float, heals: Sequence[int], seeds: int, advance: Advance) -> Iterator[Cell]:
        if self.layers != ("*.mlp.*",):
            raise ConfigError(f"'{SCRATCH}' is a model with smaller MLPs: leave it out, or leave --layers at '*.mlp.*'")
        hidden = max(1, int(share * self.config.model.hidden_of(0)))
        for steps in heals:
            config = self._fresh(hidden, steps)
            found, speed = list[Losses](), 0.0
            for seed in range(seeds):
                config = config.model_copy(update={"seed": self.config.seed + seed})
                model = self._trained(config, None, steps, seed, advance)
                found.append(losses(self.engine, model, self.source))
                speed = speed or self._speed(model)
            stored = parameter_count(config.model)
            yield self._cell(SCRATCH, share, steps, f"{hidden} hidden units", stored, found, speed)

    def _fresh(self, hidden: int, steps: int) -> RunConfig:
        """As the parent was trained, but smaller, for so many steps, and with the same teacher as the others."""
        distill = {"kind": "none"} if self.teacher is None else {"kind": "logits", "teacher": self.teacher}
        schedule = {"kind": "linear", "warmup": steps // 20}
        ramps = {"batch_ramp": {"kind": "none"}, "context_ramp": {"kind": "none"}}
        return derive(
            self.config,
            model={"structure": {"*.mlp": {"kind": "narrow", "hidden": hidden}}},
            optim={"schedule": schedule, "distill": distill, "ema": 0.0},
            train={"steps": steps, "eval_interval": steps} | ramps,
        )

    def _trained(self, config: RunConfig, values: Arrays | None, steps: int, seed: int, advance: Advance) -> Any:
        """The model after so many steps on the batches of a seed."""
        if not steps:
            assert values is not None
            return self.engine.model(config.model, values)
        source = self.source.reordered(_HEALING_ORDER + seed)
        # Nothing is left to the clock, which might decide otherwise for another cell.
        config = derive(config, train={"workers": 1, "compile": "off"})
        config, _ = self.engine.resolve(config, source.batch_at(0))
        state = self.engine.init(config, values)
        for step in range(steps):
            advance("healing", step, steps)
            share, batch = schedule_share(config, step), source.batch_at(step)
            self.engine.step(state, batch, config=config, share=share, step=step)
        return self.engine.model_of(state)

    def _subject(self, seed: int) -> Subject:
        return _Unscored(self.engine, self.config.model, self.values, self.source, self.tokens, order=1 + seed)

    def _speed(self, model: Any) -> float:
        """Tokens a second of one row, from half of a block on."""
        block = self.config.model.block_size
        prompt = max(1, block // 2)
        [figures] = measure_decoding(
            self.engine.decoder(model, rows=1),
            vocab_size=self.config.model.vocabulary,
            rows=[1],
            prompt=prompt,
            new=min(128, block - prompt),
            seconds=self.seconds,
            read_rate=1.0,
        )
        return figures.decode

    def _cell(
        self, kind: str, share: float, heal: int, becomes: str, stored: int, found: Sequence[Losses], speed: float
    ) -> Cell:
        return Cell(
            kind=kind,
            share=share,
            heal=heal,
            becomes=becomes,
            stored=stored,
            losses=tuple(found),
            dense=self.dense.dense,
            speed=speed,
        )

"""What a run would be, before it is: size, memory, work, time, disk and the loss at its end.

Sizes are counted, and times are of a few steps on scratch weights, so nothing here changes a run. Ramps are followed
step by step: work is the sum over the sizes that steps have, and time a line between the smallest and the largest batch
of each length.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bonsaigpt.config import NoRamp, RunConfig
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.engines import Engine
from bonsaigpt.measure.accounting import flops_per_token, matrix_parameters
from bonsaigpt.measure.scaling import Prediction, Scaling
from bonsaigpt.progress import Advance, silent
from bonsaigpt.spec import initial_value, parameter_count, parameters
from bonsaigpt.trace import Room, StepMemory

__all__ = ["Forecast", "Times", "forecast"]

MANY_EPOCHS = 4.0
"""Up to about so many, seeing the data again is worth nearly as much as new data (Muennighoff et al. 2023)."""
_STEPS = 3
"""That are timed, after one that warms up."""

_Size = tuple[int, int]
"""Windows and context of a step (see ``data/plan.py``)."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long a run takes, from what was measured here; in seconds."""

    step: float
    """Of full size."""
    training: float
    """All steps, with what the first takes longer because it compiles."""
    deciding: float
    """How to compute, before the first step; measured here, where nothing may have been compiled before."""
    evaluation: float
    """Of the whole validation split, once."""
    evaluations: int
    mfu: float
    """Of a full step, against the device's ceiling."""

    @property
    def total(self) -> float:
        """Decisions, training and evaluations; what is written to the disk meanwhile is not in it."""
        return self.deciding + self.training + self.evaluations * self.evaluation


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would be."""

    config: RunConfig
    """With all that was left to the engine decided."""
    parameters: int
    matrix_parameters: int
    """Of these, those that a token is multiplied with."""
    memory: StepMemory
    """Of a step in one process."""
    room: Room | None
    """Memory of its device, where the system tells."""
    flops_per_token: int
    """Of training, in a full block."""
    flops: int
    """Of all steps."""
    tokens: int
    """Targets of all steps."""
    passes: dict[str, float]
    """How often each token of each training text is seen from the first step to the last, also of a run that has some
    behind it; empty where data are made on the way."""
    times: Times | None
    """None where a step would not fit into memory."""
    checkpoint: int
    """Bytes of one."""
    checkpoints: int
    """That are on the disk at once at most."""
    disk_free: int
    loss: Prediction | str
    """At the end of the run; or in words why it cannot be predicted."""

    @property
    def epochs(self) -> float | None:
        """Of the training text that is seen most often."""
        return max(self.passes.values(), default=None)

    @property
    def disk(self) -> int:
        """Bytes of checkpoints on the disk at most."""
        return self.checkpoint * self.checkpoints

    @property
    def fits(self) -> bool:
        """Whether the memory will do, as far as anybody knows."""
        return self.room is None or self.memory.total <= self.room.usable

    @property
    def warnings(self) -> list[str]:
        """What should be thought over, each with its remedy."""
        found: list[str] = []
        if not self.fits:
            recompute = "" if self.config.train.recompute else "--train.recompute true, "
            found.append(f"memory will not do: try {recompute}a smaller --train.micro_batch, model or block")
        if self.epochs is not None and self.epochs > MANY_EPOCHS:
            found.append(
                f"the data would be seen {self.epochs:.1f} times, and from about {MANY_EPOCHS:.0f} times on it teaches "
                "less and less: more text, fewer --train.steps, or --model.dropout 0.1"
            )
        if self.disk > self.disk_free:
            found.append("the disk is too small for the checkpoints: free some space, or give --runs another folder")
        return found


def forecast(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    runs: Path,
    begin: int = 0,
    fresh: bool = True,
    deciding: float = 0.0,
    advance: Advance = silent,
) -> Forecast:
    """Foresee a run of a resolved configuration.

    Args:
        runs: the folder that its own would be made in.
        begin: steps that are done already.
        fresh: whether it starts from weights that nobody has trained.
        deciding: seconds that the configuration took to resolve.
    """
    steps = _steps(config, begin)
    batches = {size: source.batch_at(first) for size, (_, first) in steps.items()}
    tokens = sum(count * batches[size].count for size, (count, _) in steps.items())
    flops = {size: _flops(config, batch) for size, batch in batches.items()}
    advance("counting memory", 0, 0)
    memory, room = engine.step_memory(config), engine.room()
    times = None
    if room is None or memory.total <= room.usable:
        times = _times(config, engine, source, steps, flops, begin, advance, deciding)
    kept = len(_due(begin, config.train.steps, config.train.keep_every)) if config.train.keep_every else 0
    return Forecast(
        config=config,
        parameters=parameter_count(config.model),
        matrix_parameters=matrix_parameters(config.model),
        memory=memory,
        room=room,
        flops_per_token=flops_per_token(config.model),
        flops=sum(count * flops[size] for size, (count, _) in steps.items()),
        tokens=tokens,
        passes=_passes(config, source),
        times=times,
        checkpoint=4 * parameter_count(config.model) + memory.state,
        checkpoints=3 + kept,  # best and last, and the next one while it is written; the others for good
        disk_free=_disk_free(runs.absolute()),
        loss=_loss(config, source, tokens, fresh=fresh and begin == 0),
    )


def _passes(config: RunConfig, source: BatchSource) -> dict[str, float]:
    positions = sum(count * source.batch_at(first).tokens_BT.size for count, first in _steps(config, 0).values())
    return dict(source.passes(positions))


def _steps(config: RunConfig, begin: int) -> dict[_Size, tuple[int, int]]:
    """How many steps there are of each size, and the first of each, in order."""
    plan, train = BatchPlan.of(config), config.train
    if isinstance(train.batch_ramp, NoRamp) and isinstance(train.context_ramp, NoRamp):
        return {(plan.batch_size, plan.block_size): (train.steps - begin, begin)}
    found: dict[_Size, tuple[int, int]] = {}
    for step in range(begin, train.steps):
        size = (plan.rows(step), plan.context(step))
        count, first = found.get(size, (0, step))
        found[size] = (count + 1, first)
    return found


def _due(begin: int, steps: int, interval: int) -> range:
    """The steps after ``begin`` that are multiples of the interval."""
    return range((begin // interval + 1) * interval, steps + 1, interval)


def _flops(config: RunConfig, batch: Batch) -> int:
    return batch.tokens_BT.size * flops_per_token(config.model, length=batch.tokens_BT.shape[1])


def _disk_free(folder: Path) -> int:
    """Bytes where the folder is, or would be made."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free


def _loss(config: RunConfig, source: BatchSource, tokens: int, *, fresh: bool) -> Prediction | str:
    scaling = Scaling.shipped()
    if (reason := scaling.why_not(config, source.fingerprint)) is not None:
        return reason
    if not fresh:
        return "the fit is of runs that start afresh, and this one goes on from trained weights"
    return scaling.predict(parameter_count(config.model), tokens)


def _times(
    config: RunConfig,
    engine: Engine,
    source: BatchSource,
    steps: dict[_Size, tuple[int, int]],
    flops: dict[_Size, int],
    begin: int,
    advance: Advance,
    deciding: float,
) -> Times:
    measured: dict[_Size, float] = {}
    warming_up = 0.0
    ends = {end for size in steps for end in _ends(size, steps)}
    for size in sorted(ends):
        advance("timing steps", len(measured), len(ends))
        first, *seconds = engine.time_steps(config, source.batch_at(steps[size][1]), _STEPS)
        measured[size] = median(seconds)
        warming_up += max(0.0, first - measured[size])  # compiling, if it is to be

    def seconds_of(size: _Size) -> float:
        least, most = _ends(size, steps)
        share = (size[0] - least[0]) / max(1, most[0] - least[0])
        return measured[least] + share * (measured[most] - measured[least])

    advance("timing an evaluation", 0, 0)
    train, full = config.train, max(measured, key=lambda size: flops[size])
    interval, last = train.eval_interval, train.steps % train.eval_interval > 0
    return Times(
        step=measured[full],
        deciding=deciding,
        training=warming_up + sum(count * seconds_of(size) for size, (count, _) in steps.items()),
        evaluation=_evaluation_seconds(config, engine, source),
        evaluations=(begin == 0) + len(_due(begin, train.steps, interval)) + last,
        mfu=flops[full] / measured[full] / engine.peak_flops(),
    )


def _ends(size: _Size, steps: dict[_Size, tuple[int, int]]) -> tuple[_Size, _Size]:
    """Of the steps with the context of ``size`` those of the fewest and of the most windows."""
    same = [other for other in steps if other[1] == size[1]]
    return min(same), max(same)


def _evaluation_seconds(config: RunConfig, engine: Engine, source: BatchSource) -> float:
    """Of the whole validation split, from its first batch."""
    values = {p.name: initial_value(p, config.seed) for p in parameters(config.model) if p.tied_to is None}
    model, batch = engine.model(config.model, values), next(source.validation())
    seconds: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        engine.evaluate(model, batch, exact=source.exact_match)
        seconds.append(time.perf_counter() - began)
    return min(seconds) * source.validation_count() / batch.count

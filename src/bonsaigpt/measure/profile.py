"""A profile: some steps timed, recorded and held against what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import Batch, BatchSource
from bonsaigpt.engines import Engine, Metrics
from bonsaigpt.measure.accounting import flops_by_kind
from bonsaigpt.measure.anatomy import Anatomy, anatomy
from bonsaigpt.measure.roofline import Machine, ProductFigures, product_figures, product_rates, step_products
from bonsaigpt.trace import STEP, Trace

__all__ = ["MemoryPoint", "Profile", "profile"]

_WINDOWS = 4
"""Stretches of steps that are timed, half of them before the recording and half after it."""
_MACHINE_SECONDS = 0.3
"""For the best product, for memory, and for twice that the products of this model."""


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """From this moment of a step on, so many bytes are held."""

    seconds: float
    bytes: int
    part: str
    """Of the step: ``forward``, ...; empty between two."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All that a profile tells. Times are of one step, in seconds."""

    environment: dict[str, Any]
    """What the engine says of itself."""
    shape: tuple[int, int]
    """Rows and length of a batch."""
    steps: int
    """Recorded."""
    at: int
    """The first of all steps taken."""
    windows: tuple[float, ...]
    """Seconds a step of each timed stretch, without a profiler."""
    flops: dict[str, int]
    """Operations of a step, by kind (see accounting.py)."""
    peak_flops: float
    """The device's ceiling: its data sheet's, or where there is none the fastest product, as ``machine`` has it."""
    machine: Machine
    anatomy: Anatomy
    products: tuple[ProductFigures, ...]
    memory: tuple[MemoryPoint, ...]
    """Of a step of one worker with its part of the batch."""

    @property
    def tokens(self) -> int:
        """In a step."""
        return self.shape[0] * self.shape[1]

    @property
    def seconds(self) -> float:
        """A step, without a profiler: the median."""
        return median(self.windows)

    @property
    def flops_per_second(self) -> float:
        """Operations of the model over the time of a step."""
        return sum(self.flops.values()) / self.seconds

    @property
    def mfu(self) -> float:
        """Against the device's ceiling, as the progress line of `train` has it."""
        return self.flops_per_second / self.peak_flops

    @property
    def mfu_measured(self) -> float:
        """Against the best product measured here."""
        return self.flops_per_second / self.machine.flops

    @property
    def bound(self) -> float:
        """The least time of the step's products by the roofline."""
        return sum(p.bound for p in self.products)

    @property
    def roofline_share(self) -> float:
        """Share of a step that the roofline of its products explains: 1 would be perfect."""
        return self.bound / self.seconds

    @property
    def peak_memory(self) -> int:
        """Bytes of tensors, if all workers are at their peaks at once: each holds activations and gradients of its own
        beside weights and moments."""
        if not self.memory:
            return 0
        rest = self.memory[0].bytes
        return rest + self.anatomy.threads * (max(point.bytes for point in self.memory) - rest)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, and the figures that follow from them."""
        derived = ("tokens", "seconds", "flops_per_second", "mfu", "mfu_measured", "bound", "roofline_share")
        figures = {name: getattr(self, name) for name in (*derived, "peak_memory")}
        figures["accounted"], figures["in_operators"] = self.anatomy.accounted, self.anatomy.in_operators
        figures["groups"], figures["parts"] = self.anatomy.groups(), self.anatomy.parts()
        memory = {name: [getattr(p, name) for p in self.memory] for name in ("seconds", "bytes", "part")}
        return {**figures, **asdict(self), "memory": memory}


def profile(
    config: RunConfig,
    *,
    engine: Engine,
    source: BatchSource,
    state: Any,
    at: int = 0,
    steps: int = 5,
    warmup: int = 3,
    chrome: Path | None = None,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Profile:
    """Take steps ``at``, ``at + 1``, ... at learning rate zero, so that ``state`` keeps its weights.

    Args:
        steps: in each of four timed stretches and in the recorded one.
        warmup: taken before, to fill caches and compile.
        chrome: where to write the recording for a trace viewer.
        advance: ``advance(what, done, total)`` follows.
    """
    taken = 0

    def step(state: Any, number: int, cut: Callable[[Batch], Batch] = lambda batch: batch) -> Metrics:
        with engine.mark("data"):
            batch = cut(source.batch_at(number))
        return engine.step(state, batch, config=config, share=0.0, step=number)

    def stretch(what: str, count: int) -> float:
        nonlocal taken
        seconds = 0.0
        for done in range(count):
            advance(what, done, count)  # drawing the bar is no part of a step
            start = time.perf_counter()
            with engine.mark(STEP):
                metrics = step(state, at + taken)
                if done + 1 == count:
                    metrics.host()  # waits for the device, as `train` does at each line of metrics
            seconds += time.perf_counter() - start
            taken += 1
        return seconds

    stretch("warming up", warmup)
    windows = [stretch("timing", steps) / steps for _ in range(_WINDOWS // 2)]
    recorded = at + taken
    wall: list[float] = []
    trace = engine.trace(lambda: wall.append(stretch("recording", steps)), chrome=chrome)
    windows += [stretch("timing", steps) / steps for _ in range(_WINDOWS - _WINDOWS // 2)]
    advance("adding up", 0, 0)
    found = anatomy(trace, wall=wall[0], steps=steps)
    advance("following memory", 0, 0)
    alone = engine.alone(state)
    memory = _memory(engine, lambda: step(alone, recorded, lambda batch: _part(batch, found.threads)))
    advance("measuring this machine", 0, 0)
    rows, length = source.batch_at(recorded).tokens_BT.shape
    element = 4 if engine.describe()["precision"] == "float32" else 2
    products = step_products(config.model, rows=rows, length=length, element=element)
    rates = product_rates(config.model, products, found, engine, seconds=2 * _MACHINE_SECONDS)
    machine = Machine(
        flops=max(engine.product_rate(seconds=_MACHINE_SECONDS), *(rate for three in rates.values() for rate in three)),
        bandwidth=engine.copy_rate(seconds=_MACHINE_SECONDS),
    )
    return Profile(
        environment=engine.describe(),  # its ceiling is the fastest product that was measured
        shape=(rows, length),
        steps=steps,
        at=at,
        windows=tuple(windows),
        flops={kind: n * rows * length for kind, n in flops_by_kind(config.model, length=length).items()},
        peak_flops=engine.peak_flops(),
        machine=machine,
        anatomy=found,
        products=product_figures(config.model, products, found, machine, rates),
        memory=memory,
    )


def _part(batch: Batch, workers: int) -> Batch:
    """As many rows as one worker takes."""
    return batch.first(-(-len(batch.tokens_BT) // workers))


def _memory(engine: Engine, step: Callable[[], Metrics]) -> tuple[MemoryPoint, ...]:
    """The bytes held in a step."""

    def marked() -> None:
        with engine.mark(STEP):
            step().host()

    def twice() -> None:  # what the second one frees was allocated while somebody looked
        marked()
        marked()

    trace = engine.trace(twice, memory=True)
    whole = max((s for s in trace.spans if s.mark and s.name == STEP), key=lambda s: s.start)
    inside = [(at, held) for at, held in trace.memory if whole.start <= at <= whole.end]
    before = next((held for at, held in reversed(trace.memory) if at < whole.start), 0)
    return tuple(
        MemoryPoint(seconds=(at - whole.start) / 1e9, bytes=held, part=_part_at(trace, at))
        for at, held in [(whole.start, before), *inside]
    )


def _part_at(trace: Trace, at: int) -> str:
    return next((s.name for s in trace.spans if s.mark and s.name != STEP and s.start <= at < s.end), "")

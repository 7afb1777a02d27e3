"""All that a run may leave to its engine, decided before the first step and kept in the run's settings.

One decision hangs on another, so there is an order: workers, the rows of a pass that then fit into memory
(``room.py``), the number formats (``formats.py``), compiling and the attention kernel (``compiling.py``). The first two
follow from counts, the last from the clock: a few steps on scratch weights, each way to compute only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bonsaigpt.config import MuonMatrices, RunConfig, derive
from bonsaigpt.data.batches import Batch
from bonsaigpt.room import Choice, choose_rows
from bonsaigpt.torch_engine.compiling import decide_compiling
from bonsaigpt.torch_engine.formats import decide_matrices, decide_precision
from bonsaigpt.units import named

if TYPE_CHECKING:
    from bonsaigpt.torch_engine.engine import TorchEngine

__all__ = ["decide"]

Say = Callable[[str], None]
"""Told what is under way before it takes its time, in a line."""

CPU_PASS = 768
"""Tokens in one forward pass on a CPU, where nothing else is asked."""


def decide(
    engine: TorchEngine, config: RunConfig, batch: Batch, *, begin: int, say: Say
) -> tuple[RunConfig, dict[str, str]]:
    """The configuration with nothing left open, and the reasons by the names of the settings.

    Args:
        batch: of the size that most steps have.
        begin: steps that are done already: what pays hangs on those to come.

    Raises:
        DeviceError: a step cannot fit into the memory of the device.
    """
    placement, left_open = engine.placement, config.left_open
    why: dict[str, str] = {}
    workers, why["train.workers"] = _workers(engine, config)
    choice = _rows(engine, config, workers)
    why["train.micro_batch"] = choice.why
    config = derive(config, train={"workers": workers, "micro_batch": choice.rows})
    if isinstance(config.optim.matrices, MuonMatrices):  # before train.precision, which it follows if that is asked
        number_format, why["optim.matrices.precision"] = decide_matrices(config, placement.device)
        matrices = config.optim.matrices.model_dump() | {"precision": number_format}
        config = derive(config, optim={"matrices": matrices})
    if not choice.fits:
        config = _without_a_clock(config, engine)
    clock = _Clock(engine, batch, say)
    precision, why["train.precision"] = decide_precision(config, placement.device, clock, begin=begin)
    if precision == "auto":
        why["train.precision"] = placement.why.partition("; ")[2]  # it has gone by the device
    config = derive(config, train={"precision": precision})
    has_memory = config.train.memory.kind != "none"
    if has_memory and config.train.compile == "auto":
        config = derive(config, train={"compile": "off"})
    decision = decide_compiling(config, placement.device, clock, begin=begin)
    why["train.compile"] = "off: a step with train.memory is not compiled" if has_memory else decision.why
    kernel = {"compile": "on" if decision.compile else "off", "attention_kernel": decision.attention_kernel}
    config = derive(config, train=kernel)
    if not choice.fits:
        unmeasured = {"train.precision", "train.compile"} & set(left_open)
        why |= dict.fromkeys(unmeasured, "a step may not fit into memory, so none was measured")
    return config, why


class _Clock:
    """Seconds of a step under a configuration with nothing open, measured on scratch weights; remembered."""

    def __init__(self, engine: TorchEngine, batch: Batch, say: Say) -> None:
        self._engine, self._batch, self._say = engine, batch, say
        self._seconds: dict[str, float] = {}

    def __call__(self, tried: RunConfig) -> float:
        settings = tried.model_dump_json()
        if settings not in self._seconds:
            if tried.train.compile == "on":
                self._say("compiling a step, to see whether it pays: up to a minute, the first time")
            elif not self._seconds:
                self._say("timing a few steps on scratch weights, to decide how to compute")
            self._seconds[settings] = min(self._engine.time_steps(tried, self._batch, 3)[1:])
        return self._seconds[settings]


def _without_a_clock(config: RunConfig, engine: TorchEngine) -> RunConfig:
    """With what is safe where a step may not fit into memory, and so none should be taken to measure it."""
    safe: dict[str, Any] = {"compile": "off"} if config.train.compile == "auto" else {}
    if config.train.precision == "auto" and engine.placement.device.type == "cpu":
        safe["precision"] = "fp32"
    return derive(config, train=safe)


def _workers(engine: TorchEngine, config: RunConfig) -> tuple[int, str]:
    if engine.placement.device.type != "cpu":
        return 1, "one: the device works through the whole batch"
    if config.model.dropout:
        return 1, "one: dropout draws from a generator that workers would share"
    pool = engine.pool
    return pool.count, f"{pool.count}, each with its part of the batch and {named(pool.threads, 'thread')}"


def _rows(engine: TorchEngine, config: RunConfig, workers: int) -> Choice:
    train, is_cpu = config.train, engine.placement.device.type == "cpu"
    rows = train.micro_batch or train.batch_size
    if is_cpu and not train.micro_batch:
        # Passes of some hundred tokens lose no speed on a CPU and keep a fraction of the activations.
        rows = min(math.ceil(rows / workers), max(1, CPU_PASS // config.model.block_size))

    def count(rows: int, kernel: str) -> int:
        chosen = {"attention_kernel": kernel if train.attention_kernel == "auto" else train.attention_kernel}
        tried = derive(config, train={"workers": workers, "micro_batch": rows, **chosen})
        return engine.step_memory(tried).total

    return choose_rows(
        config,
        # On a CPU either kernel may turn out the faster one, and the plain one holds more.
        lambda rows: count(rows, "plain" if is_cpu else "sdpa"),
        least=lambda: count(1, "sdpa"),
        rows=rows,
        own=math.ceil(train.batch_size / engine.world.size),
        workers=workers,
        space=engine.room(),
    )

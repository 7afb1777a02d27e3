"""Whether torch.compile pays, and which attention kernel: decided before the first step, kept in the run's settings.

Compiling costs half a minute the first time and some seconds when its results are cached; what it wins depends on the
machine. So a few steps are timed as they are. Only where those to come could win the time back is compiling tried, and
it is kept only if it then measures faster; what was measured is remembered beside the compiler's cache. A run that is
far too short to win anything is timed and no more, so it computes alike every time. A machine that cannot compile
trains without.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bonsaigpt.config import RunConfig, derive
from bonsaigpt.units import duration, named

__all__ = ["Decision", "compile_module", "decide_compiling", "what_is_missing"]

_GAIN = {"cpu": 1.25, "cuda": 1.6}
"""Speed-up to hope for, before anything was measured."""
_COLD_SECONDS = {"cpu": 30.0, "cuda": 60.0}
_WARM_SECONDS = {"cpu": 5.0, "cuda": 15.0}
_WORTH = 0.97
"""A change must take at most this share of the time before: less is within the noise of four steps."""
_RECOMPILATIONS = 64
"""Shapes and models that one process may compile for, before it falls back; torch's own 8 are gone after four runs."""


@dataclass(frozen=True)
class Decision:
    """How the steps of a run are computed."""

    compile: bool
    attention_kernel: str
    """``sdpa`` (torch's fused attention) or ``plain`` (matrix products, for the compiler to fuse)."""
    why: str


def decide_compiling(
    config: RunConfig, device: torch.device, seconds_a_step: Callable[[RunConfig], float], *, begin: int = 0
) -> Decision:
    """Resolve ``train.compile`` and ``train.attention_kernel``.

    Args:
        seconds_a_step: measures a step on scratch weights under a configuration whose settings are resolved.
        begin: steps that are done already.
    """
    asked, kernel = config.train.compile, config.train.attention_kernel
    safe = kernel if kernel != "auto" else "sdpa"
    if asked == "off":
        return Decision(False, safe, "off, as asked")
    if (missing := what_is_missing(device)) is not None:
        return Decision(False, safe, f"off: {missing}")
    if asked == "on":
        return Decision(True, safe, "on, as asked")

    def resolved(compile: bool, kernel: str) -> RunConfig:
        return derive(config, train={"compile": "on" if compile else "off", "attention_kernel": kernel})

    before = seconds_a_step(resolved(False, safe))
    note = _Note(config, device)
    gain, cost = note.gain or _GAIN[device.type], (_WARM_SECONDS if note.gain else _COLD_SECONDS)[device.type]
    if gain * _WORTH <= 1.0:
        return Decision(False, safe, f"off: when it was tried here, a compiled step was {gain:.2f}x as fast")
    steps = config.train.steps - begin
    if steps * before * (1 - 1 / gain) < cost:
        ours = f"{named(steps, 'step')} of {duration(before)}"
        words = f"{ours} could save {duration(steps * before * (1 - 1 / gain))}"
        return Decision(False, safe, f"off: {words}, compiling costs about {duration(cost)}")
    if kernel == "auto" and device.type == "cpu" and config.model.dropout == 0:
        plain = seconds_a_step(resolved(False, "plain"))
        if plain <= _WORTH * before:
            safe, before = "plain", plain
    try:
        began = time.perf_counter()
        after = seconds_a_step(resolved(True, safe))
        spent = time.perf_counter() - began
    except Exception as error:  # the compiler's own errors are of many kinds, and none is a reason not to train
        return Decision(False, safe, f"off: compiling failed ({type(error).__name__})")
    note.write(before / after)
    if after > _WORTH * before:
        return Decision(False, safe, f"off: a compiled step measured {before / after:.2f}x as fast, not worth it")
    return Decision(True, safe, f"on: {before / after:.2f}x as fast, measured; compiling took {duration(spent)}")


def compile_module(module: nn.Module, device: torch.device) -> None:
    """Have the module compiled when it is first called."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILATIONS)
    # On a CPU the code that calls the kernels is C++ too: from Python it would hold the interpreter's lock between
    # kernels of some microseconds each, and the workers would wait for each other.
    module.compile(options={"cpp_wrapper": True} if device.type == "cpu" else None)


def what_is_missing(device: torch.device) -> str | None:
    """In words why this machine cannot compile for the device, or None."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if device.type != "cpu":
        return f"not tried on {device.type}"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:  # it raises its own error, or whatever calling a compiler that is not there gives
        return "no C++ compiler here"
    return None


class _Note:
    """A file beside inductor's cache: such a model was compiled here before, and a step became so much faster."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        train = config.train
        settings = (train.batch_size, train.micro_batch, train.workers, train.precision, train.attention_kernel)
        settings += (torch.get_num_threads(), str(device), torch.__version__)
        digest = hashlib.sha256((config.model.model_dump_json() + str(settings)).encode()).hexdigest()[:16]
        self.path = Path(cache_dir()) / "bonsai" / f"{digest}.json"
        self.gain: float | None = None
        with suppress(OSError, ValueError, KeyError, TypeError):  # another's file, cut short or of another version
            self.gain = float(json.loads(self.path.read_text(encoding="utf-8"))["gain"])

    def write(self, gain: float) -> None:
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"gain": round(gain, 3)}), encoding="utf-8")

"""Whether torch.compile pays, decided before the first step and written into the run's configuration.

Compiling costs half a minute the first time and some seconds when its results are cached; what it wins depends on the
machine. So it is tried only where the steps to come could win the time back, and kept only if it then measures faster.
A machine that cannot compile trains without.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bonsaigpt.config import RunConfig, derive

__all__ = ["Decision", "decide"]

_GAIN = {"cpu": 1.15, "cuda": 1.6}
"""Speed-up to hope for, before anything was measured."""
_COLD_SECONDS = {"cpu": 45.0, "cuda": 60.0}
_WARM_SECONDS = {"cpu": 8.0, "cuda": 15.0}
_SHORT = 256
"""Context up to which attention by plain matrix products, fused by the compiler, beats the flash kernel on a CPU."""


@dataclass(frozen=True)
class Decision:
    """How the steps of a run are computed."""

    compile: bool
    attention_kernel: str
    """``sdpa`` (torch's fused attention) or ``plain`` (matrix products, for the compiler to fuse)."""
    why: str


def decide(config: RunConfig, device: torch.device, seconds_a_step: Callable[[RunConfig], float]) -> Decision:
    """Resolve ``train.compile`` and ``train.attention_kernel``.

    Args:
        seconds_a_step: measures a step on scratch weights under a configuration whose settings are resolved.
    """
    asked, kernel = config.train.compile, config.train.attention_kernel
    plain_pays = device.type == "cpu" and config.model.block_size <= _SHORT and config.model.dropout == 0
    fused = kernel if kernel != "auto" else "plain" if plain_pays else "sdpa"
    eager = kernel if kernel != "auto" else "sdpa"
    if asked == "off":
        return Decision(False, eager, "off, as asked")
    if (missing := what_is_missing(device)) is not None:
        return Decision(False, eager, f"off: {missing}")
    if asked == "on":
        return Decision(True, fused, "on, as asked")

    def resolved(compile: bool, kernel: str) -> RunConfig:
        return derive(config, train={"compile": "on" if compile else "off", "attention_kernel": kernel})

    before = seconds_a_step(resolved(False, eager))
    note = _cache_note(resolved(True, fused), device)
    cost = (_WARM_SECONDS if note.exists() else _COLD_SECONDS)[device.type]
    saving = config.train.steps * before * (1 - 1 / _GAIN[device.type])
    words = f"{config.train.steps:,} steps of {_duration(before)} could save {_duration(saving)}"
    if saving < cost:
        return Decision(False, eager, f"off: {words}, compiling costs about {_duration(cost)}")
    try:
        began = time.perf_counter()
        after = seconds_a_step(resolved(True, fused))
        spent = time.perf_counter() - began
    except Exception as error:  # the compiler's own errors are of many kinds, and none is a reason not to train
        return Decision(False, eager, f"off: compiling failed ({type(error).__name__})")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"seconds": round(spent, 1)}), encoding="utf-8")
    if after > 0.97 * before:
        return Decision(False, eager, f"off: a compiled step measured {before / after:.2f}x as fast, not worth it")
    return Decision(True, fused, f"on: {before / after:.2f}x as fast, measured; compiling took {_duration(spent)}")


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


def _cache_note(config: RunConfig, device: torch.device) -> Path:
    """A file beside inductor's cache that says: this model was compiled here before."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    settings = config.model.model_dump_json() + str((config.train.batch_size, config.train.attention_kernel, device))
    digest = hashlib.sha256((settings + torch.__version__).encode()).hexdigest()[:16]
    return Path(cache_dir()) / "bonsai" / f"{digest}.json"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.0f} s"

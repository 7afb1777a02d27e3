"""What an engine must do, and the one place where its name becomes code.

States, models and caches are the engine's own and pass through other code unopened.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import DeviceError, did_you_mean
from bonsaigpt.trace import Trace

__all__ = ["Engine", "Metrics", "load_engine"]

_ENGINES = {"torch": ("bonsaigpt.torch_engine.engine", "TorchEngine")}


class Metrics(Protocol):
    """What a step leaves on the device."""

    def host(self) -> dict[str, float]:
        """``loss``, ``grad_norm``, ``skipped`` and ``skipped_in_a_row`` as numbers; waits for the device."""
        ...


class Engine(Protocol):
    """One way to compute; see ``torch_engine/engine.py`` for what each method promises."""

    name: str

    def describe(self) -> dict[str, Any]: ...
    def resolve(self, config: RunConfig, batch: Batch) -> tuple[RunConfig, dict[str, str]]: ...
    def init(self, config: RunConfig, values: Arrays | None = None) -> Any: ...
    def restore(self, config: RunConfig, model: Arrays, optimizer: Arrays) -> Any: ...
    def arrays(self, state: Any) -> tuple[Arrays, Arrays]: ...
    def step(self, state: Any, batch: Batch, *, config: RunConfig, share: float, step: int) -> Metrics: ...
    def evaluate(self, model: Any, batch: Batch, *, exact: bool = False) -> tuple[float, int]: ...
    def model(self, config: ModelConfig, values: Arrays) -> Any: ...
    def model_of(self, state: Any) -> Any: ...
    def block_size(self, model: Any) -> int: ...
    def cache(self, model: Any, *, batch: int) -> Any: ...
    def next_logits(self, model: Any, tokens_BT: np.ndarray, cache: Any = None) -> np.ndarray: ...
    def peak_flops(self) -> float: ...
    def product_rate(self, shape: tuple[int, int, int] | None = None, *, seconds: float) -> float: ...
    def copy_rate(self, *, seconds: float) -> float: ...
    def alone(self, state: Any) -> Any: ...
    def mark(self, name: str) -> AbstractContextManager[Any]: ...
    def trace(self, work: Callable[[], object], *, memory: bool = False, chrome: Path | None = None) -> Trace: ...


def load_engine(name: str = "torch", **placement: Any) -> Engine:
    """The engine of that name, imported only now. ``placement``: device, precision, threads."""
    if name not in _ENGINES:
        raise DeviceError(f"there is no engine '{name}': use one of {sorted(_ENGINES)}.{did_you_mean(name, _ENGINES)}")
    module, attribute = _ENGINES[name]
    return getattr(import_module(module), attribute)(**placement)

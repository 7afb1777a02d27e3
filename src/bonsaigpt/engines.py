"""What an engine must do, and the one place where its name becomes code.

States, models and caches are the engine's own and pass through other code unopened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from bonsaigpt.checkpoint import Arrays, RunDirectory
from bonsaigpt.config import KVConfig, MemoryConfig, ModelConfig, RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.errors import DeviceError, did_you_mean
from bonsaigpt.trace import Look, Observed, Room, StepMemory, Trace

__all__ = ["Decoder", "Engine", "Metrics", "Reader", "World", "load_engine"]

T = TypeVar("T")

_ENGINES = {
    "torch": ("bonsaigpt.torch_engine.engine", "TorchEngine"),
    "jax": ("bonsaigpt.jax_engine.engine", "JaxEngine"),
}
_OF_JAX = ("jax", "jaxlib", "optax")


class Metrics(Protocol):
    """What a step leaves on the device."""

    def host(self) -> dict[str, float]:
        """``loss``, ``grad_norm``, ``skipped`` and ``skipped_in_a_row`` as numbers; waits for the device."""
        ...

    def health(self) -> Arrays | None:
        """What the step was asked to tell of its health, for ``measure/health.py``; None if it was not asked."""
        ...


class World(Protocol):
    """The processes that train together; see ``torch_engine/distributed.py``. Alone, every method answers at once."""

    size: int
    is_main: bool

    def on_main(self, make: Callable[[], T]) -> T: ...
    def main_first(self, make: Callable[[], T]) -> T: ...
    def sum(self, values: Sequence[float]) -> list[float]: ...
    def agree(self, number: int) -> int: ...
    def together(self) -> AbstractContextManager[None]: ...


class Decoder(Protocol):
    """A model ready to go on with texts: its weights as they are read fastest, and a cache of ``rows`` rows.

    A row has ``block_size`` slots, which fill from the left: the slot of a token is its position. Logits of a row never
    depend on what other rows are in the call; on a CPU not in a single bit. One thread at a time may call it, and the
    model must not be trained meanwhile.
    """

    rows: int
    block_size: int
    vocabulary: int
    """Logits of a row."""
    weight_bytes: int
    """What a step reads of the weights, at least."""
    why: str
    """In words, how it computes and why."""

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        """Append tokens (T,) to a row, in chunks inside; logits (V,) float32 after the last.

        Raises:
            GenerateError: no tokens, no such row, an id outside the vocabulary, or more than the slots that are left;
                the row is as it was.
        """
        ...

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """One more token (R,) for each of these different rows (R,), each at its own length; logits (R, V) float32,
        valid until the next call. Errors as of ``prefill``."""
        ...

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        """Append tokens (T,); logits (T, V) after each (speculative decoding). Errors as of ``prefill``."""
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first tokens of a row; 0 clears it. What has forgotten earlier tokens cannot always go
        back: see ``reach``.

        Raises:
            GenerateError: the row holds no such past.
        """
        ...

    def reach(self, row: int, length: int) -> int:
        """The longest past of at most so many tokens that ``truncate`` can go back to."""
        ...

    def copy_row(self, source: int, target: int) -> None:
        """Make a row's past another row's."""
        ...

    def length(self, row: int) -> int:
        """Tokens that a row holds."""
        ...

    def bits(self) -> int:
        """Bits of the cache, all rows."""
        ...


class Reader(Protocol):
    """Texts of one length that are read side by side through one cache policy: for teacher-forced losses."""

    length: int
    """Tokens of each text that were read."""

    def read(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Read on, all at once and exactly among these tokens: that is one chunk. Logits (B, T, V) float32."""
        ...

    def bits(self) -> int:
        """Bits of the cache, all texts."""
        ...

    def positions(self, layer: int) -> np.ndarray:
        """The positions that a layer holds, (B, G, S); B and G are 1 where all texts and heads hold the same."""
        ...


class Engine(Protocol):
    """One way to compute; see ``torch_engine/engine.py`` for what each method promises."""

    name: str

    @property
    def world(self) -> World: ...

    def describe(self) -> dict[str, Any]: ...
    def check_fits(self, config: RunConfig) -> None: ...
    def resolve(
        self, config: RunConfig, batch: Batch, *, begin: int = 0, say: Callable[[str], None] = ...
    ) -> tuple[RunConfig, dict[str, str]]: ...
    def step_memory(self, config: RunConfig) -> StepMemory: ...
    def room(self) -> Room | None: ...
    def time_steps(self, config: RunConfig, batch: Batch, count: int) -> list[float]: ...
    def init(self, config: RunConfig, values: Arrays | None = None) -> Any: ...
    def restore(self, config: RunConfig, model: Arrays, optimizer: Arrays) -> Any: ...
    def arrays(self, state: Any) -> tuple[Arrays, Arrays]: ...
    def save(self, state: Any, run: RunDirectory, about: dict[str, Any]) -> None: ...
    def settle(self) -> None: ...
    def load(self, config: RunConfig, folder: Path) -> Any: ...
    def close(self) -> None: ...
    def step(
        self, state: Any, batch: Batch, *, config: RunConfig, share: float, step: int, look: Look | None = None
    ) -> Metrics: ...
    def observe(
        self, config: RunConfig, model: Arrays, optimizer: Arrays, batch: Batch, *, double: bool = False
    ) -> Observed:
        """One step at the peak rates from a saved state, and all on the way to it; ``double``: in float64, if this
        engine can. In training mode but for dropout, whose noise is each engine's own."""
        ...

    def memory(self, model: ModelConfig, setting: MemoryConfig, *, rows: int) -> Any: ...
    def evaluate(self, model: Any, batch: Batch, *, exact: bool = False, memory: Any = None) -> tuple[float, int]: ...
    def losses(
        self, model: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, *, memory: Any = None
    ) -> np.ndarray: ...
    def model(self, config: ModelConfig, values: Arrays) -> Any: ...
    def write_graph(self, config: ModelConfig, values: Arrays, path: Path, form: Literal["torch", "onnx"]) -> None: ...
    def model_of(self, state: Any) -> Any: ...
    def block_size(self, model: Any) -> int: ...
    def cache(self, model: Any, *, batch: int) -> Any: ...
    def map_sums(
        self, model: Any, batches: Iterable[np.ndarray], weights: Sequence[str], *, teacher: Any = ...
    ) -> dict[str, tuple[np.ndarray, np.ndarray, float, int]]: ...
    def fit_mlp(
        self,
        config: ModelConfig,
        values: Arrays,
        mlp: str,
        batches: Sequence[np.ndarray],
        *,
        teacher: Any,
        steps: int = ...,
        normalise: bool = ...,
    ) -> tuple[Arrays, tuple[float, float]]: ...
    def decoder(
        self,
        model: Any,
        *,
        rows: int,
        weights: Literal["fp32", "int8"] = ...,
        tokens: int | None = None,
        say: Callable[[str], None] = ...,
        kv: KVConfig | None = None,
    ) -> Decoder: ...
    def reader(self, model: Any, kv: KVConfig) -> Reader: ...
    def attention_maps(self, model: Any, tokens: np.ndarray, kv: KVConfig) -> np.ndarray: ...
    def rounded(self, model: Any, weights: Literal["int8", "int4"] = ...) -> Any: ...
    def next_logits(self, model: Any, tokens_BT: np.ndarray, cache: Any = None) -> np.ndarray: ...
    def target_scores(self, model: Any, batch: Batch) -> TargetScores: ...
    def choice_scores(
        self, model: Any, prompts: Sequence[np.ndarray], choices: Sequence[np.ndarray], advance: Callable[[int], None]
    ) -> np.ndarray: ...
    def peak_flops(self) -> float: ...
    def product_rate(self, shape: tuple[int, int, int] | None = None, *, seconds: float) -> float: ...
    def copy_rate(self, *, seconds: float) -> float: ...
    def read_rate(self, *, seconds: float) -> float: ...
    def alone(self, state: Any) -> Any: ...
    def mark(self, name: str) -> AbstractContextManager[Any]: ...
    def trace(self, work: Callable[[], object], *, memory: bool = False, chrome: Path | None = None) -> Trace: ...


def load_engine(name: str = "torch", **placement: Any) -> Engine:
    """The engine of that name, imported only now. ``placement``: device, precision, threads, workers, process.

    Raises:
        DeviceError: there is no such engine, a library of its own is not installed, or the placement cannot be.
    """
    if name not in _ENGINES:
        raise DeviceError(f"there is no engine '{name}': use one of {sorted(_ENGINES)}.{did_you_mean(name, _ENGINES)}")
    module, attribute = _ENGINES[name]
    try:
        made = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _OF_JAX:
            raise
        raise DeviceError(
            f"the JAX engine needs {error.name}, which is not here: pip install 'bonsaigpt[jax]', or --engine torch"
        ) from None
    except (ImportError, RuntimeError) as error:  # of JAX itself, or versions that do not fit each other
        if name != "jax":
            raise
        raise DeviceError(
            f"jax is here, but does not load: {error}. Mend it (pip install -U 'bonsaigpt[jax]') or take --engine torch"
        ) from error
    return made(**placement)

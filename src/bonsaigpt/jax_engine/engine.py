"""The JAX engine as the rest of the house sees it: the methods of ``bonsaigpt.engines.Engine``."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bonsaigpt.checkpoint import Arrays, Checkpoint, RunDirectory, files
from bonsaigpt.config import (
    KVConfig,
    MemoryConfig,
    ModelConfig,
    MuonMatrices,
    RunConfig,
    derive,
)
from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import GenerateError
from bonsaigpt.jax_engine import optim, sharding
from bonsaigpt.jax_engine.ceiling import copy_rate, product_rate, read_rate
from bonsaigpt.jax_engine.compiling import Program, Report, program
from bonsaigpt.jax_engine.decode import JaxDecoder
from bonsaigpt.jax_engine.device import Placement, choose_placement
from bonsaigpt.jax_engine.distributed import World
from bonsaigpt.jax_engine.model import Model, Params, flat, hidden, init, logits, narrowed, nested
from bonsaigpt.jax_engine.observing import observe
from bonsaigpt.jax_engine.refusing import REFUSED, refuse, refuse_model, refuse_run
from bonsaigpt.jax_engine.rounding import rounded
from bonsaigpt.jax_engine.states import State, StepMetrics
from bonsaigpt.jax_engine.step import Learned, cut, evaluate_rows, fresh, rows_of, token_losses, train_step
from bonsaigpt.processes import Process
from bonsaigpt.room import Choice, choose_rows, host_room, refuse_hopeless
from bonsaigpt.spec import parameters
from bonsaigpt.structure import MATERIALISED, merge
from bonsaigpt.trace import Look, Observed, Room, StepMemory

__all__ = ["JaxEngine"]


class JaxEngine:
    """JAX on all devices of a kind, which are one mesh; or as one of several processes whose devices are."""

    name = "jax"

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        workers: int = 0,
        process: Process = Process(),  # noqa: B008  # frozen
    ) -> None:
        self.world = World(process)
        self.placement: Placement = choose_placement(device, precision, threads)
        self._rows: dict[int, int] = {}

    def describe(self) -> dict[str, Any]:
        """Versions, device and precision with the reason, and the ceiling that MFU is counted against."""
        return {
            "engine": f"jax {jax.__version__}",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": ", ".join(map(str, self.placement.devices)),
            "precision": jnp.dtype(self.placement.dtype).name,
            "why": self.placement.why,
            "threads": int(os.environ.get("NPROC", os.cpu_count() or 1)),
            "workers": 1,
            "ceiling": f"{self._ceiling / 1e9:,.0f} GFLOP/s, measured: a product of two matrices in XLA",
            "processes": self.world.size,
            "backend": "none" if self.world.size == 1 else jax.default_backend(),
        }

    # ------------------------------------------------------------------ training

    def check_fits(self, config: RunConfig) -> None:
        """Refuse what this engine does not compute.

        Raises:
            DeviceError: in one sentence what it is, and what does.
        """
        refuse_run(config)
        mesh = self._mesh(config)
        shards = mesh.size if config.train.parallel == "fsdp" else mesh.shape["model"]
        refuse_hopeless(config, self.room(), shards=shards)

    def resolve(
        self, config: RunConfig, batch: Batch, *, begin: int = 0, say: Callable[[str], None] = lambda line: None
    ) -> tuple[RunConfig, dict[str, str]]:
        """The configuration with all decided that is this engine's to decide, and the reasons.

        What PyTorch alone has (workers, torch.compile, its kernels) stays open, so that a run may go on there.
        """
        why = {"train.precision": self.placement.why.partition("; ")[2]}
        choice = self._rows_of_a_pass(config)
        config, why["train.micro_batch"] = derive(config, train={"micro_batch": choice.rows}), choice.why
        if config.train.precision == "auto" and not self.placement.is_gpu:
            config = derive(config, train={"precision": "fp32"})
        matrices = config.optim.matrices
        if isinstance(matrices, MuonMatrices) and matrices.precision == "auto":
            chosen = "bf16" if self.placement.dtype == jnp.bfloat16 else "fp32"
            config = derive(config, optim={"matrices": matrices.model_dump() | {"precision": chosen}})
            why["optim.matrices.precision"] = f"{chosen}: as the products of the model"
        if config.train.health.interval:
            why["train.health"] = "no looks at health are taken in JAX"
        if config.train.workers > 1:
            why["train.workers"] = "one: XLA shares out the work of a step itself"
        if config.train.compile == "on":
            why["train.compile"] = "XLA compiles every step; the setting is torch.compile's"
        return config, why

    def _rows_of_a_pass(self, config: RunConfig) -> Choice:
        rows = config.train.micro_batch or config.train.batch_size

        def count(rows: int, **more: Any) -> int:
            return self.step_memory(derive(config, train={"micro_batch": rows, **more})).total

        least = partial(count, 1)
        return choose_rows(config, count, least=least, rows=rows, own=rows, workers=1, space=self.room())

    def step_memory(self, config: RunConfig) -> StepMemory:
        """The bytes that a step of a resolved configuration will hold on a device of this process, as XLA counts them;
        it is compiled for that."""
        learned = self._blank(config)
        layout = sharding.of_learned(config, self._alone(config)._mesh(config), learned)

        def held(values: Any, where: Any) -> int:
            each = jax.tree.map(lambda w, s: math.prod(s.shard_shape(w.shape)) * w.dtype.itemsize, values, where)
            return sum(jax.tree.leaves(each))

        weights, moments = held(learned.params, layout.params), held(learned.moments, layout.moments)
        rest = self.report(config).total - weights - moments
        parts = {"weights": weights, "optimizer": moments, "gradients and activations": rest}
        return StepMemory(parts=parts, state=sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(learned.moments)))

    def report(self, config: RunConfig) -> Report:
        """What compiling the step of a resolved configuration takes and makes, for the devices of this process."""
        B, T = config.train.batch_size, config.model.block_size
        documents_BT = np.zeros((B, T)) if getattr(config.data, "document_mask", False) else None
        zeros_BT = np.zeros((B, T))
        blank = Batch(tokens_BT=zeros_BT, targets_BT=zeros_BT, documents_BT=documents_BT, count=B * T)
        mesh, learned = self._alone(config)._mesh(config), self._blank(config)
        layout = sharding.of_learned(config, mesh, learned)
        learned = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), learned, layout)
        program = self._program(config, mesh, layout)
        return program.report(learned, *self._arguments(config, mesh, blank, 1.0, 0), **self._constants(config))

    def _blank(self, config: RunConfig) -> Learned:
        """The shapes of a state."""
        return jax.eval_shape(lambda: fresh(config, init(config.model, config.seed)))

    def _alone(self, config: RunConfig) -> JaxEngine:
        """This process with its devices, as long as they can share matrices as the run does: what one process does
        for itself must not wait for others."""
        own, alone = self.placement.own, copy(self)
        if self.world.size > 1 and len(own) % config.train.tensor_parallel == 0:
            alone.world, alone.placement = World(Process()), replace(self.placement, devices=own)
        return alone

    def room(self) -> Room | None:
        """The memory of a device; on a CPU this process' part, as others may share it."""
        stats = self.placement.device.memory_stats() or {}
        if "bytes_limit" in stats:
            return Room(stats["bytes_limit"] - stats.get("bytes_in_use", 0), stats["bytes_limit"])
        found = None if self.placement.is_gpu else host_room()
        return None if found is None else Room(found.free // self.world.size, found.total)

    def time_steps(self, config: RunConfig, batch: Batch, count: int) -> list[float]:
        """Seconds of a first step on scratch weights with this process' rows, which compiles, and of ``count`` more."""
        alone, batch = self._alone(config), batch.share(0, self.world.size)
        state, seconds = alone.init(config), []
        for step in range(1 + count):
            began = time.perf_counter()
            alone.step(state, batch, config=config, share=1.0, step=step).host()
            seconds.append(time.perf_counter() - began)
        return seconds

    def init(self, config: RunConfig, values: Arrays | None = None) -> State:
        """A fresh state: weights from the seed, or from ``values``; the optimizer starts anew."""
        refuse_run(config)
        params = init(config.model, config.seed) if values is None else nested(config.model, values)
        return self._state(config, fresh(config, params))

    def _state(self, config: RunConfig, learned: Learned) -> State:
        mesh = self._mesh(config)
        layout = sharding.of_learned(config, mesh, learned)
        return State(config, sharding.place(learned, layout), mesh, self._program(config, mesh, layout))

    def restore(self, config: RunConfig, model: Arrays, optimizer: Arrays) -> State:
        """The state that ``arrays`` gave, in either engine; without an optimizer's state that one starts anew."""
        refuse_run(config)
        learned = fresh(config, nested(config.model, model))
        weights, moments = optim.load(
            learned.moments, flat(learned.params), {n: v for n, v in optimizer.items() if n != "guard"}
        )
        guard = jnp.asarray(optimizer["guard"]) if "guard" in optimizer else learned.guard
        return self._state(config, Learned(nested(config.model, weights), moments, guard))

    def arrays(self, state: State) -> tuple[Arrays, Arrays]:
        """The weights to use (the average, if one is kept), and all else that the next step depends on; on the host.
        All processes ask together."""
        learned = state.learned
        weights = flat(learned.params)
        to_use = learned.moments.average or weights
        table = [p.name for p in parameters(state.config.model) if p.tied_to is None]
        rest = optim.arrays(weights, learned.moments) | {"guard": learned.guard}
        return sharding.fetch({name: to_use[name] for name in table}), sharding.fetch(rest)

    def save(self, state: State, run: RunDirectory, about: dict[str, Any]) -> None:
        """Write a checkpoint; ``about`` is its ``state.json``."""
        model, optimizer = self.arrays(state)
        if self.world.is_main:
            run.save(Checkpoint(model=model, optimizer=optimizer, state=about))

    def settle(self) -> None:
        """Nothing is written behind anybody's back."""

    def load(self, config: RunConfig, folder: Path) -> State:
        """The state that ``save`` wrote, in either engine."""
        saved = files.read(folder)
        return self.restore(config, saved.model, saved.optimizer)

    def close(self) -> None:
        """Part from the other processes, if there are any."""
        self.world.close()

    def step(
        self, state: State, batch: Batch, *, config: RunConfig, share: float, step: int, look: Look | None = None
    ) -> StepMetrics:
        """One optimizer step at ``share`` of the peak learning rates; the state then holds what it made. ``look`` is
        not taken."""
        arguments, constants = self._arguments(config, state.mesh, batch, share, step), self._constants(config)
        state.learned, figures = state.step(state.learned, *arguments, **constants)
        return StepMetrics(figures, batch.count)

    def observe(
        self, config: RunConfig, model: Arrays, optimizer: Arrays, batch: Batch, *, double: bool = False
    ) -> Observed:
        """See ``bonsaigpt.engines.Engine``.

        Raises:
            DeviceError: float64 is asked for.
        """
        if double:
            refuse("compute in float64")
        state = self.restore(config, model, optimizer)
        found: Observed = {"weights": self._all(state)}
        passes = program(observe, config, mesh=state.mesh)
        on_way = passes(state.learned.params, rows_of(batch), np.float32(batch.count))
        found |= {level: sharding.fetch(values) for level, values in on_way.items()}
        self.step(state, batch, config=config, share=1.0, step=0)
        return found | {"step": self._all(state)}

    def _all(self, state: State) -> Arrays:
        weights, rest = self.arrays(state)
        return weights | {name: value for name, value in rest.items() if name != "guard"}

    def _mesh(self, config: RunConfig) -> Mesh:
        return sharding.make_mesh(self.placement.devices, model=config.train.tensor_parallel)

    def _program(self, config: RunConfig, mesh: Mesh, layout: Any) -> Program:
        results = layout, sharding.whole(mesh)
        return program(train_step, config, mesh=mesh, donate=(0,), static=("dtype", "fused"), results=results)

    def _arguments(self, config: RunConfig, mesh: Mesh, batch: Batch, share: float, step: int) -> tuple[Any, ...]:
        """All but the state."""
        train, shrunk = config.train, config.model.block_size / batch.tokens_BT.shape[1]  # settings count whole blocks
        most, full = (max(1, int(rows * shrunk)) for rows in (train.micro_batch or train.batch_size, train.batch_size))
        cuts, parts = cut(batch, most, full=full, devices=mesh.shape["data"])
        rows = sharding.place(cuts, sharding.of_batch(mesh, rows=1))
        return rows, np.int32(parts), np.float32(batch.count), np.float32(share), np.int32(step)

    def _constants(self, config: RunConfig) -> dict[str, Any]:
        plain = config.train.attention_kernel == "plain"
        return {"dtype": self.placement.dtype, "fused": self.placement.is_gpu and not plain}

    def memory(self, model: ModelConfig, setting: MemoryConfig, *, rows: int) -> None:
        """None: this engine carries nothing from batch to batch.

        Raises:
            DeviceError: a memory is asked for.
        """
        if setting.kind != "none":
            refuse("carry a memory from batch to batch (train.memory)")

    def evaluate(self, model: Model, batch: Batch, *, exact: bool = False, memory: Any = None) -> tuple[float, int]:
        """Sum of the loss in nats, and, if ``exact``, rows solved whole. Rows are filled up to as many as were seen
        before, so that a last, smaller batch does not compile anew. Of several processes that share it out the main one
        tells the sum, the others 0."""
        mesh = jax.tree.leaves(model.params)[0].sharding.mesh
        B, T = batch.tokens_BT.shape
        rows = self._rows[T] = max(-(-B // mesh.shape["data"]) * mesh.shape["data"], self._rows.get(T, 0))
        score = program(evaluate_rows, model.config, mesh=mesh, static=("dtype", "exact"), results=sharding.whole(mesh))
        filled = sharding.place(rows_of(batch, rows=rows), sharding.of_batch(mesh, rows=0))
        loss_sum, right = score(model.params, filled, dtype=self.placement.dtype, exact=exact)
        if not self.world.is_main:
            return 0.0, 0
        return float(loss_sum), int(right) - (rows - B if exact else 0)  # an empty row is solved

    def losses(self, model: Model, tokens_BT: np.ndarray, targets_BT: np.ndarray, *, memory: Any = None) -> np.ndarray:
        """Loss of every target in nats, (B, T) float64."""
        score = program(token_losses, model.config, static=("dtype",))
        found = score(model.params, tokens_BT.astype(np.int32), targets_BT.astype(np.int32), dtype=self.placement.dtype)
        return np.asarray(found, dtype=np.float64)

    # ------------------------------------------------------------------ a model alone

    def model(self, config: ModelConfig, values: Arrays) -> Model:
        """A model to evaluate or to generate with. Weights whose factors would take more work for a token than the
        matrix are merged into it, once."""
        refuse_model(config)
        config, values = merge(config, values, which=lambda _, s: s.macs(s.cheapest) >= s.macs(MATERIALISED))
        mesh = sharding.make_mesh(self.placement.own)  # one process may ask alone
        return Model(config, sharding.place(nested(config, values), sharding.whole(mesh)))

    def model_of(self, state: State) -> Model:
        """A model to evaluate, over the average of the weights, if one is kept; good until the next step, which takes
        its memory."""
        average = state.learned.moments.average
        return Model(state.config.model, nested(state.config.model, average) if average else state.learned.params)

    def block_size(self, model: Model) -> int:
        """Longest context of the model, in tokens."""
        return model.config.block_size

    def decoder(
        self,
        model: Model,
        *,
        rows: int,
        weights: Literal["fp32", "int8"] = "fp32",
        tokens: int | None = None,
        say: Callable[[str], None] = lambda words: None,
        kv: KVConfig | None = None,
    ) -> JaxDecoder:
        """Goes on with ``rows`` texts; see ``bonsaigpt.engines.Decoder``.

        Raises:
            DeviceError: a cache policy is asked for.
        """
        if kv is not None and not kv.is_plain:
            refuse("keep less than everything in the cache (--kv)")
        return JaxDecoder(model, rows=rows, placement=self.placement, weights=weights)

    def rounded(self, model: Model, weights: Literal["int8", "int4"] = "int8") -> Model:
        """The model with what int8 or int4 keeps of its matrices: to evaluate what that costs."""
        return rounded(model, weights)

    def next_logits(self, model: Model, tokens_BT: np.ndarray, cache: None = None) -> np.ndarray:
        """Logits of the token after the last, (B, V) float32 on the host; the whole context is read again. It is padded
        to a power of two, so that few lengths are compiled."""
        T, block = tokens_BT.shape[1], model.config.block_size
        if block < T:
            raise GenerateError(f"{T} tokens are more than the block of {block}: shorten the text")
        length = min(block, 1 << (T - 1).bit_length())
        padded = np.pad(tokens_BT.astype(np.int32), [(0, 0), (0, length - T)])
        last = program(_logits_at, model.config, static=("dtype",))
        return np.asarray(last(model.params, padded, np.int32(T - 1), dtype=self.placement.dtype))

    # ------------------------------------------------------------------ how fast

    @cached_property
    def _ceiling(self) -> float:
        return self.product_rate(seconds=0.2)

    def peak_flops(self) -> float:
        """Operations a second that the devices of all processes can do at most, by a product measured on one of them;
        those of a CPU in one process share its cores."""
        return self._ceiling * (len(self.placement.devices) if self.placement.is_gpu else self.world.size)

    def product_rate(self, shape: tuple[int, int, int] | None = None, *, seconds: float) -> float:
        """Operations a second of a product (m, k) times (k, n), measured; without a shape, of a large square one."""
        return product_rate(self.placement, shape, seconds=seconds)

    def copy_rate(self, *, seconds: float) -> float:
        """Bytes a second that are read and written while memory is copied, measured."""
        return copy_rate(self.placement, seconds=seconds)

    def read_rate(self, *, seconds: float) -> float:
        """Bytes a second that are read from memory which no cache holds, measured."""
        return read_rate(self.placement, seconds=seconds)

    def alone(self, state: State) -> State:
        """The same state: there are no workers."""
        return state

    def mark(self, name: str) -> AbstractContextManager[Any]:
        """Nobody records here."""
        return nullcontext()

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        """What the protocol asks beyond the above is refused by name when it is called."""
        if name not in REFUSED:
            raise AttributeError(f"'JaxEngine' has no attribute '{name}'")
        return lambda *_, **__: refuse(REFUSED[name])


def _logits_at(config: ModelConfig, params: Params, tokens_BT: jax.Array, last: jax.Array, *, dtype: Any) -> jax.Array:
    params = narrowed(params, dtype)
    hidden_BTD, _ = hidden(config, params, tokens_BT)
    hidden_BD = jax.lax.dynamic_index_in_dim(hidden_BTD, last, axis=1, keepdims=False)
    return logits(config, params, hidden_BD).astype(jnp.float32)

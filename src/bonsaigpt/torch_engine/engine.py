"""The PyTorch engine as the rest of the house sees it: the methods of ``bonsaigpt.engines.Engine``."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from bonsaigpt.checkpoint import Arrays, Checkpoint, RunDirectory, files
from bonsaigpt.config import KVConfig, MemoryConfig, ModelConfig, RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.errors import DeviceError
from bonsaigpt.processes import Process
from bonsaigpt.room import refuse_hopeless
from bonsaigpt.torch_engine.cache import FullCache
from bonsaigpt.torch_engine.calibrate import map_sums
from bonsaigpt.torch_engine.carry import Carried
from bonsaigpt.torch_engine.ceiling import ceiling, copy_rate, product_rate, read_rate
from bonsaigpt.torch_engine.deciding import decide
from bonsaigpt.torch_engine.decode import make_decoder
from bonsaigpt.torch_engine.device import NUMBER_FORMATS, Placement, choose_placement, room
from bonsaigpt.torch_engine.distributed import World, own_device
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.fit_mlp import fit_mlp
from bonsaigpt.torch_engine.graphs import GraphFormat, write_graph
from bonsaigpt.torch_engine.kv.decoder import PolicyDecoder, PolicyReader, attention_maps
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.memory import step_memory
from bonsaigpt.torch_engine.model import GPT, build, build_fast, load_weights, weights
from bonsaigpt.torch_engine.native.decoder import NativeDecoder
from bonsaigpt.torch_engine.observing import observe
from bonsaigpt.torch_engine.parallel import Replicated
from bonsaigpt.torch_engine.profiling import mark, record
from bonsaigpt.torch_engine.rounding import Weights, rounded
from bonsaigpt.torch_engine.scoring import choice_scores, target_scores
from bonsaigpt.torch_engine.states import load_optimizer, make_state
from bonsaigpt.torch_engine.step import State, StepMetrics, evaluate_batch, token_losses, train_step
from bonsaigpt.torch_engine.workers import WorkerPool, keep_memory
from bonsaigpt.trace import Look, Observed, Room, StepMemory, Trace

if TYPE_CHECKING:
    from bonsaigpt.torch_engine.shard_files import ShardFiles

__all__ = ["TorchEngine"]


class TorchEngine:
    """PyTorch on one device, or as one of several processes that train together."""

    name = "torch"

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        workers: int = 0,
        process: Process = Process(),  # noqa: B008  # frozen
    ) -> None:
        self.placement: Placement = choose_placement(own_device(device, process), precision, threads)
        self.world = World(process, self.placement.device)
        threads = torch.get_num_threads()
        count = (workers or threads) if self.placement.device.type == "cpu" and process.size == 1 else 1
        self.pool = WorkerPool(count, threads=max(1, threads // count))
        self._files: ShardFiles | None = None

    def describe(self) -> dict[str, Any]:
        """Versions, device and precision with the reason, and the ceiling that MFU is counted against."""
        return {
            "engine": f"torch {torch.__version__}",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": str(self.placement.device),
            "precision": str(self.placement.dtype).removeprefix("torch."),
            "why": self.placement.why,
            "threads": torch.get_num_threads(),
            "workers": self.pool.count,
            "ceiling": ceiling(self.placement, self.pool).why,
            "processes": self.world.size,
            "backend": self.world.backend,
        }

    # ------------------------------------------------------------------ training

    def resolve(
        self, config: RunConfig, batch: Batch, *, begin: int = 0, say: Callable[[str], None] = lambda line: None
    ) -> tuple[RunConfig, dict[str, str]]:
        """The configuration with all that was left to the engine decided for batches like this one, and the reasons.

        A run keeps the resolved one: whoever continues or replays it computes as it did.

        Args:
            begin: steps that are done already.
            say: told in a line what is under way before it takes its time.
        """
        config, why = decide(self, config, batch, begin=begin, say=say)
        self._follow(config)
        return config, why

    def _follow(self, config: RunConfig) -> None:
        """Compute in the number format that was decided since this engine was made."""
        decided = NUMBER_FORMATS.get(config.train.precision, self.placement.dtype)
        if decided != self.placement.dtype:
            where = self.placement.why.partition(";")[0]
            placement = choose_placement(str(self.placement.device), config.train.precision)
            self.placement = replace(placement, why=f"{where}; {config.train.precision}, as decided for the run")

    def check_fits(self, config: RunConfig) -> None:
        """Refuse, by arithmetic alone, a model that this device cannot train; its vocabulary may be unknown yet.

        Raises:
            DeviceError: what every step holds is more than the memory that there is.
        """
        refuse_hopeless(config, self.room(), shards=self.world.size if config.train.parallel == "fsdp" else 1)

    def step_memory(self, config: RunConfig) -> StepMemory:
        """The bytes that a step of a resolved configuration will hold in this process, counted without computing."""
        return step_memory(config, self.placement, processes=self.world.size)

    def room(self) -> Room | None:
        """The memory of this process' device; on a CPU its part, as other processes may share it."""
        found = room(self.placement.device)
        if found is None or self.placement.device.type != "cpu":
            return found
        return Room(found.free // self.world.size, found.total)

    def time_steps(self, config: RunConfig, batch: Batch, count: int) -> list[float]:
        """Seconds of a first step on scratch weights with this process' rows, which warms up and may compile, and of
        ``count`` more."""
        alone = copy(self)
        alone.world = World(Process(), self.placement.device)
        batch = batch.share(0, self.world.size)
        state, seconds = alone.init(config), []
        for step in range(1 + count):
            began = time.perf_counter()
            alone.step(state, batch, config=config, share=1.0, step=step).host()
            seconds.append(time.perf_counter() - began)
        return seconds

    def init(self, config: RunConfig, values: Arrays | None = None) -> State:
        """A fresh state: weights from the seed, or from ``values``; the optimizer starts anew."""
        return self._state(config, build(config.model, seed=config.seed, values=values))

    def _state(self, config: RunConfig, model: GPT) -> State:
        if self.placement.device.type == "cpu":
            keep_memory()
        self._follow(config)
        carried = self.memory(config.model, config.train.memory, rows=config.train.batch_size)
        return make_state(config, model, self.placement, self.world, self.pool, carried)

    def restore(self, config: RunConfig, model: Arrays, optimizer: Arrays) -> State:
        """The state that ``arrays`` gave; without an optimizer's state that one starts anew."""
        state = self.init(config, model)
        load_optimizer(state, optimizer)
        return state

    def arrays(self, state: State) -> tuple[Arrays, Arrays]:
        """The weights to use (the average, if one is kept), and all else that the next step depends on; on the host."""
        memory = {} if state.carried is None else state.carried.arrays()
        return weights(self.model_of(state)), state.optimizer.arrays() | {"guard": state.guard.arrays()} | memory

    def save(self, state: State, run: RunDirectory, about: dict[str, Any]) -> None:
        """Write a checkpoint; ``about`` is its ``state.json``. Shards are on the disk only when ``settle`` returns."""
        layout = state.layout
        if isinstance(layout, Replicated):
            if self.world.is_main:
                model, optimizer = self.arrays(state)
                run.save(Checkpoint(model=model, optimizer=optimizer, state=about))
            return
        optimizer = state.optimizer.tensors() | {"guard": torch.from_numpy(state.guard.arrays())}
        self._shard_files().save(state.optimizer.weights_to_use(), optimizer, layout, run, about)

    def settle(self) -> None:
        """Wait for what is being written.

        Raises:
            OutputError: it could not be written; the checkpoint before it still stands.
        """
        if self._files is not None:
            self._files.wait()

    def load(self, config: RunConfig, folder: Path) -> State:
        """The state that ``save`` wrote, on however many processes."""
        if config.train.parallel == "ddp" or self.world.size == 1:
            saved = files.read(folder)
            return self.restore(config, saved.model, saved.optimizer)
        state = self._state(config, GPT(config.model))  # its memory is filled from the files alone
        layout = state.layout
        assert not isinstance(layout, Replicated)
        saved_rows = self._shard_files().load(folder, layout)
        state.optimizer.put_weights({name: saved_rows.pop(name) for name in layout.parameters})
        load_optimizer(state, saved_rows)
        return state

    def _shard_files(self) -> ShardFiles:
        from bonsaigpt.torch_engine.shard_files import ShardFiles  # slow to import, and few need it

        if self._files is None:
            self._files = ShardFiles(self.world)
        return self._files

    def close(self) -> None:
        """Part from the other processes, if there are any."""
        self.world.close()

    def step(
        self, state: State, batch: Batch, *, config: RunConfig, share: float, step: int, look: Look | None = None
    ) -> StepMetrics:
        """One optimizer step, in place, at ``share`` of the peak learning rates.

        Args:
            look: also tell of its health, which changes no bit of what it does.
        """
        return train_step(state, batch, config=config, placement=self.placement, share=share, step=step, look=look)

    def observe(
        self, config: RunConfig, model: Arrays, optimizer: Arrays, batch: Batch, *, double: bool = False
    ) -> Observed:
        """See ``bonsaigpt.engines.Engine``."""
        return observe(config, model, optimizer, batch, placement=self.placement, double=double)

    def memory(self, model: ModelConfig, setting: MemoryConfig, *, rows: int) -> Carried | None:
        """An empty memory for so many rows; none if the setting is none.

        Raises:
            DeviceError: several processes train together.
        """
        if setting.kind == "none":
            return None
        if self.world.size > 1:
            raise DeviceError("train.memory is kept by one process alone so far: train without torchrun")
        return Carried(model, setting, rows=rows, device=self.placement.device, dtype=self.placement.dtype)

    def evaluate(
        self, model: GPT, batch: Batch, *, exact: bool = False, memory: Carried | None = None
    ) -> tuple[float, int]:
        """Sum of the loss in nats over this process' part, and, if ``exact``, its rows solved whole. ``memory``: what
        stood before each row; it goes on with them."""
        batch = batch.part(self.world.process.rank, self.world.size)
        if len(batch.tokens_BT) == 0:
            return 0.0, 0
        return evaluate_batch(model, batch, self.placement, self.pool, exact=exact, carried=memory)

    def losses(
        self, model: GPT, tokens_BT: np.ndarray, targets_BT: np.ndarray, *, memory: Carried | None = None
    ) -> np.ndarray:
        """Loss of every target in nats, (B, T) float64. ``memory``: as in ``evaluate``."""
        return token_losses(model, tokens_BT, targets_BT, self.placement, carried=memory)

    # ------------------------------------------------------------------ a model alone

    def model(self, config: ModelConfig, values: Arrays) -> GPT:
        """A model to evaluate or to generate with; see ``build_fast``."""
        return build_fast(config, values).to(self.placement.device).eval()

    def write_graph(self, config: ModelConfig, values: Arrays, path: Path, form: GraphFormat) -> None:
        """Write the step of decoding as one file that runs without this package; see ``graphs.py``. Factors stay."""
        write_graph(build(config, values=values), path, form)

    def model_of(self, state: State) -> GPT:
        """A model to evaluate: over the average of the weights, if one is kept. Shards are put together, by all
        processes at once."""
        layout = state.layout
        if isinstance(layout, Replicated):
            return state.model if state.averaged is None else state.averaged
        model = GPT(state.model.config).to(self.placement.device)
        model.through = state.model.through
        rows = state.optimizer.weights_to_use()
        load_weights(model, ((name, layout.whole(name, tensor)) for name, tensor in rows.items()))
        return model

    def block_size(self, model: GPT) -> int:
        """Longest context of the model, in tokens."""
        return model.config.block_size

    def cache(self, model: GPT, *, batch: int) -> FullCache:
        """An empty cache with one slot for each position of a block."""
        return FullCache(
            model.config,
            batch=batch,
            slots=model.config.block_size,
            device=self.placement.device,
            dtype=self.placement.dtype,
        )

    def map_sums(
        self, model: GPT, batches: Iterable[np.ndarray], weights: Sequence[str], *, teacher: GPT | None = None
    ) -> dict[str, tuple[np.ndarray, np.ndarray, float, int]]:
        """The fields of ``compress.Moments`` for maps of the model, over batches of tokens (B, T); see calibrate.py."""
        found = map_sums(model, batches, weights, teacher=teacher)
        return {name: sums.means() for name, sums in found.items()}

    def fit_mlp(
        self,
        config: ModelConfig,
        values: Arrays,
        mlp: str,
        batches: Sequence[np.ndarray],
        *,
        teacher: GPT,
        steps: int = 200,
        normalise: bool = True,
    ) -> tuple[Arrays, tuple[float, float]]:
        """Train one MLP (``transformer.h.0.mlp``) on its real inputs, so that the residual stream after it becomes
        the teacher's; its values, and the relative error before and after. See fit_mlp.py."""
        return fit_mlp(
            build(config, values=values).to(self.placement.device),
            mlp,
            batches,
            teacher=teacher,
            steps=steps,
            normalise=normalise,
        )

    def decoder(
        self,
        model: GPT,
        *,
        rows: int,
        weights: Weights = "fp32",
        tokens: int | None = None,
        say: Callable[[str], None] = lambda words: None,
        kv: KVConfig | None = None,
    ) -> NativeDecoder | EagerDecoder | PolicyDecoder:
        """The fastest way here to go on with ``rows`` texts.

        Args:
            weights: ``int8`` rounds the matrices, one scale for each output channel; ``fp32`` leaves them as they are.
            tokens: how many are expected in all, if known: nothing is built that would not pay for itself.
            say: is told what takes a while.
            kv: what the cache keeps; everything by default.

        Raises:
            ConfigError: the model cannot have this policy.
        """
        model, placement = model.eval(), self.placement
        return make_decoder(model, rows=rows, placement=placement, weights=weights, tokens=tokens, say=say, kv=kv)

    def reader(self, model: GPT, kv: KVConfig) -> PolicyReader:
        """Texts side by side through one cache policy; see ``bonsaigpt.engines.Reader``."""
        return PolicyReader(model, kv, placement=self.placement)

    def attention_maps(self, model: GPT, tokens: np.ndarray, kv: KVConfig) -> np.ndarray:
        """What tokens take of earlier ones, (L, H, T, T); see ``kv/decoder.py``."""
        return attention_maps(model, kv, tokens, placement=self.placement)

    def rounded(self, model: GPT, weights: Literal["int8", "int4"] = "int8") -> GPT:
        """The model with what int8 or int4 keeps of its matrices: to evaluate what that costs."""
        return rounded(model, weights)

    @torch.inference_mode()
    def next_logits(self, model: GPT, tokens_BT: np.ndarray, cache: FullCache | None = None) -> np.ndarray:
        """Logits of the token after the last, (B, V) float32 on the host; the cache takes the new tokens."""
        model.eval()
        tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64)).to(self.placement.device)
        with self.placement.autocast():
            last_B1D = model.hidden(tokens, cache=cache)[:, -1:]
            logits_BV = model.logits(last_B1D)[:, 0]
        return logits_BV.float().cpu().numpy()

    def target_scores(self, model: GPT, batch: Batch) -> TargetScores:
        """What the model says of every single target that counts."""
        return target_scores(model, batch, self.placement)

    def choice_scores(
        self, model: GPT, prompts: Sequence[np.ndarray], choices: Sequence[np.ndarray], advance: Callable[[int], None]
    ) -> np.ndarray:
        """Log-probability of each choice after each prompt, all token ids, in nats; (N, C). See scoring.py."""
        return choice_scores(model, prompts, choices, self.placement, advance)

    # ------------------------------------------------------------------ how fast

    def peak_flops(self) -> float:
        """Operations a second that the devices of all processes can do at most: by data sheet, or measured here."""
        return ceiling(self.placement, self.pool).flops * self.world.size

    def product_rate(self, shape: tuple[int, int, int] | None = None, *, seconds: float) -> float:
        """Operations a second of a product (m, k) times (k, n), measured; without a shape, of the best square one."""
        return product_rate(self.placement, self.pool, shape, seconds=seconds)

    def copy_rate(self, *, seconds: float) -> float:
        """Bytes a second that are read and written while memory is copied, measured."""
        return copy_rate(self.placement, self.pool, seconds=seconds)

    def read_rate(self, *, seconds: float) -> float:
        """Bytes a second that are read from memory which no cache holds, measured."""
        return read_rate(self.placement, self.pool, seconds=seconds)

    def alone(self, state: State) -> State:
        """The same state, computed by the calling thread without workers."""
        learner = state.layout.learners[0]
        assert isinstance(learner, Learner)  # of one process
        return replace(state, layout=Replicated([learner], self.world), pool=WorkerPool())

    def mark(self, name: str) -> AbstractContextManager[Any]:
        """Name a part of the step (one of ``trace.MARKS``) for ``trace``; free while nobody records."""
        return mark(name)

    def trace(self, work: Callable[[], object], *, memory: bool = False, chrome: Path | None = None) -> Trace:
        """Run ``work`` and record its spans, or with ``memory`` the bytes that it holds; see profiling.py."""
        return record(work, self.placement.device, memory=memory, chrome=chrome)

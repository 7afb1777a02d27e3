"""A whole experiment: model and data with the optimisation and the loop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config
from bonsaigpt.config.corpora import StdlibData
from bonsaigpt.config.data import DataConfig
from bonsaigpt.config.examples import ExamplesData, PairsData
from bonsaigpt.config.memory import MemoryConfig, NoMemory, memory_flaw
from bonsaigpt.config.model import ModelConfig
from bonsaigpt.config.optim import (
    LogitsDistill,
    MuonMatrices,
    NoRamp,
    OptimConfig,
    PreferenceObjective,
    Ramp,
    RewardObjective,
)
from bonsaigpt.config.toys import TaskData

__all__ = ["GuardConfig", "HealthConfig", "RunConfig", "TrainConfig"]


class GuardConfig(Config):
    """What to do when a step goes wrong: skip it, go back to a good checkpoint, give up with a diagnosis."""

    spike: float = Field(default=6.0, ge=0.0)
    """Skip a step whose gradient norm is more than 10 times its running mean and so many standard deviations (of its
    logarithm) above; 0 skips only steps whose loss or gradient is not finite."""
    max_skips: int = Field(default=5, ge=1)
    """Skipped steps in a row after which the run goes back to its last good checkpoint."""
    rollbacks: int = Field(default=2, ge=0)
    """How often it may go back, each time with the data in another order, before it stops with a diagnosis."""


class HealthConfig(Config):
    """How closely a run is watched: gradients, updates, hidden units, attention and weights (docs/health.md)."""

    interval: int = Field(default=100, ge=0)
    """Steps between looks; 0 takes none."""
    tokens: int = Field(default=1024, ge=1)
    """Tokens of the step's own batch that a look computes once more: as many whole rows as that makes, at least one."""


class TrainConfig(Config):
    """The loop: how long, how much at once, how often it looks up."""

    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=12, ge=1)
    """Sequences in one optimizer step, over all micro-batches and processes."""
    batch_ramp: Ramp = NoRamp()
    """Start with fewer sequences a step and grow to batch_size."""
    context_ramp: Ramp = NoRamp()
    """Start with shorter contexts and grow to block_size: windows are cut into shorter rows, so a step keeps its
    tokens. Lengths are rounded down to a divisor of block_size."""
    memory: MemoryConfig = NoMemory()
    """What a row sees of the tokens before it, carried from batch to batch of data.order = streams (Transformer-XL)."""
    kv: str = ""
    """What a cache will keep, in one line, e.g. "window(32), int4" (docs/kv.md): rows are read so in training and at
    evaluations, and the gradient goes straight through what is coded. Empty: everything, exactly."""
    micro_batch: int = Field(default=0, ge=0)
    """Sequences in one forward pass, to save memory; the gradient is the same. 0 means as many as suit the device
    and fit into its memory."""
    recompute: bool = False
    """Recompute the activations of each block in the backward pass: less memory, a third more work."""
    eval_interval: int = Field(default=250, ge=1)
    """Steps between evaluations of the whole validation split; each one also saves a checkpoint."""
    eval_block_size: int | None = Field(default=None, ge=1)
    """Context at evaluations, tokens; none means model.block_size. An equal one makes unequal blocks comparable."""
    log_interval: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""
    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoint of every so many steps for good; 0 keeps best and last alone."""
    sample_tokens: int = Field(default=0, ge=0)
    """Tokens to write after each evaluation, into samples/; 0 writes none."""
    sample_prompt: str = "\n"
    """What those samples go on from."""
    engine: Literal["torch", "jax"] = "torch"
    """What computes: PyTorch, or JAX (extra `jax`; docs/jax.md tells what it leaves out); a run can go on in either."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; auto takes bf16 (or fp16 with a loss scaler) only where the device computes
    in it natively."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Fuse operators with torch.compile; auto compiles where the steps to come win back the time it takes."""
    attention_kernel: Literal["auto", "sdpa", "plain"] = "auto"
    """torch's fused attention, or plain matrix products, which may compile to faster code at short context."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 means as many as torch chooses."""
    workers: int = Field(default=0, ge=0)
    """On a CPU: threads that each take a part of the batch, instead of sharing every operator; 0 means one for each
    thread where that pays."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp keeps the weights whole in every process, fsdp cuts them, their gradients and the optimizer's
    state into a shard for each; one process alone ignores it."""
    best: Literal["loss", "exact", "preference"] = "loss"
    """What makes a checkpoint the best: the lowest validation loss; the largest share of answers that are exactly right
    (toys, examples); or the largest share of pairs in which the chosen answer gained on the rejected one
    (optim.objective.kind = preference). Of equal shares the lower loss decides."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Devices that share the matrices of each block, under train.engine = jax: outputs on the way in, inputs on the
    way out."""
    patience: int = Field(default=0, ge=0)
    """Stop after so many evaluations without a new best; 0 never stops early."""
    guard: GuardConfig = GuardConfig()
    health: HealthConfig = HealthConfig()
    tensorboard: bool = True
    """Write TensorBoard files into the run."""
    wandb: str = ""
    """Project on Weights & Biases to log to (extra `wandb`); empty means none."""


class RunConfig(Config):
    """A whole experiment: `bonsai train` needs nothing else."""

    about: str = ""
    """One line for `bonsai recipes`: what the run shows and the number to expect."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Seed of weights, order of data, dropout and samples."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = StdlibData()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @property
    def left_open(self) -> tuple[str, ...]:
        """The settings that the engine is to decide, by their dotted names. Of a run that has begun none are left, but
        on a GPU ``train.precision``, which goes by the device of the day."""
        train = self.train
        settings = {
            "train.workers": train.workers,
            "train.micro_batch": train.micro_batch,
            "train.precision": train.precision,
            "train.compile": train.compile,
            "train.attention_kernel": train.attention_kernel,
        }
        if isinstance(self.optim.matrices, MuonMatrices):
            settings["optim.matrices.precision"] = self.optim.matrices.precision
        return tuple(name for name, value in settings.items() if value in (0, "auto"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.data, TaskData) and self.model.block_size < self.data.row - 1:
            raise ValueError(
                f"model.block_size = {self.model.block_size} is too short to {self.data.size}: use at least "
                f"{self.data.row - 1} ({self.data.shortest})"
            )
        ramps = {"batch_ramp": self.train.batch_ramp, "context_ramp": self.train.context_ramp}
        for name, ramp in ramps.items():
            if isinstance(ramp, NoRamp):
                continue
            if isinstance(self.data, TaskData | ExamplesData | PairsData) and name == "context_ramp":
                raise ValueError(
                    f"train.context_ramp cannot cut the rows of `{self.data.kind}`, whose answers need what stands "
                    "before them: leave it out"
                )
            if getattr(self.data, "order", "") == "streams":
                raise ValueError(f"train.{name} breaks the rows of data.order = 'streams': use 'shuffled', or no ramp")
        if self.train.tensor_parallel > 1 and self.train.engine == "torch":
            raise ValueError(
                f"train.tensor_parallel = {self.train.tensor_parallel} is the JAX engine's: add --engine jax, or use 1"
            )
        if self.train.memory.kind != "none":
            self._check_memory()
        self._check_objective()
        if self.train.best == "exact" and not isinstance(self.data, TaskData | ExamplesData | PairsData):
            raise ValueError(
                f"train.best = 'exact' needs answers that are right or wrong, and data.kind = '{self.data.kind}' is "
                "text: use 'loss'"
            )
        if self.train.best == "preference" and not isinstance(self.optim.objective, PreferenceObjective):
            raise ValueError(
                "train.best = 'preference' compares with the reference of optim.objective.kind = 'preference': set "
                "both, or use 'loss'"
            )
        context = self.train.eval_block_size
        if context is not None and isinstance(self.data, TaskData | ExamplesData | PairsData):
            raise ValueError(
                f"train.eval_block_size cuts text into windows, and the rows of `{self.data.kind}` are whole: leave it "
                "out"
            )
        if context is not None and context > self.model.block_size:
            raise ValueError(
                f"train.eval_block_size = {context} is longer than the model's context, model.block_size = "
                f"{self.model.block_size}: use that or less"
            )
        return self

    def _check_objective(self) -> None:
        """What fits which data."""
        objective, rows = self.optim.objective, self.train.batch_size
        if isinstance(objective, PreferenceObjective) != isinstance(self.data, PairsData):
            raise ValueError("optim.objective.kind = 'preference' goes with data.kind = 'pairs': set both or neither")
        if isinstance(objective, PreferenceObjective) and rows % 2:
            raise ValueError(f"a pair takes two rows, and train.batch_size = {rows} is odd: use {rows + 1}")
        if isinstance(objective, RewardObjective):
            if not isinstance(self.data, TaskData) or self.data.kind == "recall":
                raise ValueError(
                    f"optim.objective.kind = 'reward' needs a toy whose answer ends the row, and data.kind is "
                    f"'{self.data.kind}': use sort, add or copy"
                )
            if rows % objective.samples:
                raise ValueError(
                    f"train.batch_size = {rows} is no multiple of optim.objective.samples = {objective.samples}: use "
                    f"{rows + -rows % objective.samples}"
                )
        plain = isinstance(self.train.batch_ramp, NoRamp) and self.optim.distill.kind == "none"
        if objective.kind != "likelihood" and not (plain and self.optim.z_loss == 0):
            raise ValueError(
                f"optim.objective.kind = '{objective.kind}' goes with no train.batch_ramp, optim.distill or "
                "optim.z_loss: leave them out"
            )

    def _check_memory(self) -> None:
        """What carries nothing from batch to batch."""
        if getattr(self.data, "order", "") != "streams":
            raise ValueError(
                "train.memory carries on what a row has read, and only rows of data.order = 'streams' read on: use that"
            )
        if (flaw := memory_flaw(self.train.memory, self.model)) is not None:
            raise ValueError(flaw)
        if self.train.kv:
            raise ValueError("train.kv is of rows that are read alone: leave it or train.memory out")
        if isinstance(self.optim.distill, LogitsDistill):
            raise ValueError(
                "optim.distill asks a teacher that reads each row without what stood before it: leave train.memory or "
                "the teacher out"
            )
        if self.train.compile == "on":
            raise ValueError("a step with train.memory is not compiled: use train.compile = 'auto' or 'off'")
        if self.train.eval_block_size not in (None, self.model.block_size):
            raise ValueError("train.eval_block_size does not go with train.memory, whose rows read on: leave it out")

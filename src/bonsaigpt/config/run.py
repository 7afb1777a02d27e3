"""A whole experiment: model and data with the optimisation and the loop."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config
from bonsaigpt.config.data import DataConfig, SortData, StdlibData
from bonsaigpt.config.model import ModelConfig

__all__ = ["ConstantSchedule", "CosineSchedule", "OptimConfig", "RunConfig", "TrainConfig"]


class CosineSchedule(Config):
    """Linear warmup, then half a cosine down to a share of the peak (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule."""
    warmup: int = Field(default=100, ge=0)
    """Steps of linear warmup."""
    final: float = Field(default=0.1, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of the peak."""


class ConstantSchedule(Config):
    """Linear warmup, then the peak for ever."""

    kind: Literal["constant"] = "constant"
    """Which schedule."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warmup."""


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019); which parameters decay is written in spec.py."""

    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled decay of matrices and embeddings, per unit of learning rate."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Memory of the gradient's mean."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Memory of the gradient's square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    grad_clip: float = Field(default=1.0, ge=0.0)
    """Largest global norm of the gradient; 0 means no clipping."""
    schedule: Annotated[CosineSchedule | ConstantSchedule, Field(discriminator="kind")] = CosineSchedule()


class TrainConfig(Config):
    """The loop: how long, how much at once, how often it looks up."""

    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=12, ge=1)
    """Sequences in one optimizer step, over all micro-batches and processes."""
    grad_accum: int = Field(default=1, ge=1)
    """Micro-batches into which a batch is cut to save memory; the gradient is the same."""
    eval_interval: int = Field(default=250, ge=1)
    """Steps between evaluations of the whole validation split; each one also saves a checkpoint."""
    log_interval: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""
    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoint of every so many steps for good; 0 keeps best and last alone."""
    sample_tokens: int = Field(default=0, ge=0)
    """Tokens to write after each evaluation, into samples/; 0 writes none."""
    sample_prompt: str = "\n"
    """What those samples go on from."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the matrix products; auto takes bf16 only where the device computes in it natively."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 means as many as torch chooses."""
    tensorboard: bool = True
    """Write TensorBoard files into the run."""
    wandb: str = ""
    """Project on Weights & Biases to log to (extra `wandb`); empty means none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.grad_accum:
            raise ValueError(
                f"train.batch_size = {self.batch_size} cannot be cut into train.grad_accum = {self.grad_accum} "
                f"equal parts: use a batch size of {-(-self.batch_size // self.grad_accum) * self.grad_accum}"
            )
        return self


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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.data, SortData) and self.model.block_size < 2 * self.data.length - 1:
            raise ValueError(
                f"model.block_size = {self.model.block_size} is too short to sort {self.data.length} digits: "
                f"use at least {2 * self.data.length - 1} (2 * data.length - 1)"
            )
        return self

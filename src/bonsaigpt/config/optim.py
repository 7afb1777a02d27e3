"""How the weights are changed: optimizers, schedules of the learning rate, and ramps of batch and context."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bonsaigpt.config.base import Config

__all__ = [
    "AdamWMatrices",
    "ConstantSchedule",
    "CosineSchedule",
    "LikelihoodObjective",
    "LinearRamp",
    "LinearSchedule",
    "LogitsDistill",
    "MuonMatrices",
    "NoDistill",
    "NoRamp",
    "ObjectiveConfig",
    "OptimConfig",
    "PreferenceObjective",
    "Ramp",
    "RewardObjective",
    "Schedule",
    "StagedRamp",
    "WSDSchedule",
]


class ConstantSchedule(Config):
    """Linear warmup, then the peak for ever."""

    kind: Literal["constant"] = "constant"
    """Which schedule."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warmup."""


class CosineSchedule(Config):
    """Linear warmup, then half a cosine down to a share of the peak (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule."""
    warmup: int = Field(default=100, ge=0)
    """Steps of linear warmup."""
    final: float = Field(default=0.1, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of the peak."""


class LinearSchedule(Config):
    """Linear warmup, then a straight line down to a share of the peak (Defazio et al. 2023)."""

    kind: Literal["linear"] = "linear"
    """Which schedule."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warmup."""
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of the peak."""


class WSDSchedule(Config):
    """Warmup, a stable stretch at the peak, then a cooldown: the trapezoid (Zhai et al. 2022; Haegele et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    """Which schedule."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warmup."""
    cooldown: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of all steps that the way down takes."""
    shape: Literal["linear", "sqrt"] = "linear"
    """The way down: a straight line, or 1 - sqrt, which falls faster at first."""
    final: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end, as a share of the peak."""


Schedule = Annotated[
    CosineSchedule | LinearSchedule | WSDSchedule | ConstantSchedule,
    Field(discriminator="kind"),
]


class NoRamp(Config):
    """The full size from the first step on."""

    kind: Literal["none"] = "none"
    """Which ramp."""


class LinearRamp(Config):
    """From a start to the full size along a straight line (Brown et al. 2020 ramp the batch of GPT-3 so)."""

    kind: Literal["linear"] = "linear"
    """Which ramp."""
    start: int = Field(default=1, ge=1)
    """Size at the first step."""
    steps: int = Field(default=1000, ge=1)
    """Steps until the full size is reached."""


class StagedRamp(Config):
    """A few sizes, each until a given step; then the full size."""

    kind: Literal["staged"] = "staged"
    """Which ramp."""
    sizes: tuple[int, ...] = Field(min_length=1)
    """Sizes of the stages, e.g. [4, 8]."""
    until: tuple[int, ...] = Field(min_length=1)
    """The step at which each stage ends, e.g. [200, 600]."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.sizes) != len(self.until):
            raise ValueError(f"a staged ramp has {len(self.sizes)} sizes and {len(self.until)} ends: give one for each")
        if min(self.sizes) < 1 or list(self.until) != sorted(set(self.until)) or self.until[0] < 1:
            raise ValueError(
                "a staged ramp needs sizes of at least 1 and ends that grow: e.g. sizes [4, 8] until [200, 600]"
            )
        return self


Ramp = Annotated[NoRamp | LinearRamp | StagedRamp, Field(discriminator="kind")]


class AdamWMatrices(Config):
    """The matrices of the blocks are updated as everything else is."""

    kind: Literal["adamw"] = "adamw"
    """Which update."""


class MuonMatrices(Config):
    """Muon (Jordan et al. 2024): each step of a matrix is its momentum with all singular values brought to one."""

    kind: Literal["muon"] = "muon"
    """Which update."""
    lr: float = Field(default=0.02, gt=0.0)
    """Peak learning rate of the matrices: spectral norm of an update of a square one."""
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Memory of the gradient."""
    pretrained_lr: float | None = Field(default=None, gt=0.0)
    """As optim.pretrained_lr, of the matrices."""
    iterations: int = Field(default=5, ge=1, le=10)
    """Newton-Schulz iterations; 5 bring singular values from 0.001 on close to one, fewer cost less."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the iterations: auto takes bf16 where the device has instructions for it, unless train.precision
    asks for fp32 or tf32."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled decay of the matrices, per unit of learning rate."""


class NoDistill(Config):
    """Learn from the text alone."""

    kind: Literal["none"] = "none"
    """Which teaching."""


class LogitsDistill(Config):
    """Learn from another model's distribution of the next token too (Hinton et al. 2015): the objective is (1 - share)
    cross-entropy + share T^2 KL(teacher || model), both softened by the temperature T. The reported loss stays the
    cross-entropy."""

    kind: Literal["logits"] = "logits"
    """Which teaching."""
    teacher: str = Field(min_length=1)
    """The run that teaches: RUN (its best checkpoint), RUN@last or RUN@500. It must have the same tokenizer."""
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    """The teacher's share of the objective; the rest is the text's."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Logits of both are divided by it; more makes unlikely tokens count."""
    hidden: float = Field(default=0.0, ge=0.0)
    """Weight of the error of the residual stream after each block, relative to the teacher's, mean over blocks: nats
    for an error as large as the stream itself. 0 leaves it out; more needs a teacher of the same width and depth."""


class LikelihoodObjective(Config):
    """What the data say is to become likely."""

    tuning_share: ClassVar[float] = 0.3
    """Where a tuning's learning rates begin, as a share of those of the training from random weights."""
    descends: ClassVar[bool] = True
    """Whether the mean loss of all targets is to fall."""
    kind: Literal["likelihood"] = "likelihood"
    """Which objective."""


class PreferenceObjective(Config):
    """Of two answers the chosen one is to become likelier than the rejected one, compared with a reference model (DPO,
    Rafailov et al. 2023, equation 7). For data.kind = pairs."""

    tuning_share: ClassVar[float] = 0.03
    """At ten times that a pair's margin grows by making both of its answers unlikely."""
    descends: ClassVar[bool] = False
    """Half of the targets are of answers that are to become unlikely."""
    kind: Literal["preference"] = "preference"
    """Which objective."""
    reference: str = Field(min_length=1)
    """The run that is compared with: RUN (its best checkpoint), RUN@last or RUN@500; of the same tokenizer."""
    beta: float = Field(default=0.1, gt=0.0)
    """How closely the model is held to the reference: more is closer."""


class RewardObjective(Config):
    """The model's own answers, sampled anew in each step, are to become likelier the better they are (REINFORCE,
    Williams 1992, with the mean of a problem's other answers as baseline, Kool et al. 2019). For toys whose answer
    ends the row; the reward is the share of its tokens that are right, and each is credited with those from it on."""

    tuning_share: ClassVar[float] = 0.3
    """As of the likelihood."""
    descends: ClassVar[bool] = False
    """The targets are the model's own answers, good and bad."""
    kind: Literal["reward"] = "reward"
    """Which objective."""
    samples: int = Field(default=8, ge=2)
    """Answers to each problem; train.batch_size is a multiple of it."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Logits are divided by it when answers are sampled."""


ObjectiveConfig = Annotated[
    LikelihoodObjective | PreferenceObjective | RewardObjective,
    Field(discriminator="kind"),
]


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019), for the matrices of the blocks Muon if asked; spec.py says what decays."""

    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    pretrained_lr: float | None = Field(default=None, gt=0.0)
    """That of the training from random weights, noted by what goes on from it: a tuning takes its share of this one,
    however often the model was tuned before. None: this is that training."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled decay of matrices and embeddings, per unit of learning rate."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Memory of the gradient's mean."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Memory of the gradient's square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    matrices: Annotated[AdamWMatrices | MuonMatrices, Field(discriminator="kind")] = AdamWMatrices()
    """What updates the matrices of the blocks."""
    lr_scale: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default={})
    """Learning-rate factors by parameter name (globs), e.g. {"lm_head.*" = 0.5, "*.wte.*" = 3}; the last match wins. 0
    freezes: no gradient is computed, and nothing kept for the optimizer."""
    grad_clip: float = Field(default=1.0, ge=0.0)
    """Largest global norm of the gradient; 0 means no clipping."""
    z_loss: float = Field(default=0.0, ge=0.0)
    """Weight of the squared log-partition added to the training loss, to keep logits from drifting (Chowdhery et al.
    2022); 1e-4 is usual. The reported loss never contains it."""
    objective: ObjectiveConfig = LikelihoodObjective()
    """What training makes likelier."""
    distill: Annotated[NoDistill | LogitsDistill, Field(discriminator="kind")] = NoDistill()
    """Whether another model teaches."""
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Memory of an exponential average of the weights, which then is evaluated, saved and used; 0 means none."""
    schedule: Schedule = CosineSchedule()

    def scale_of(self, name: str) -> float:
        """The factor on the learning rate of the parameter of that name; 0 if it is frozen."""
        return next((s for glob, s in reversed(self.lr_scale.items()) if fnmatchcase(name, glob)), 1.0)

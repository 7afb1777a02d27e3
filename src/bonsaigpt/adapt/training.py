"""The training that goes on from a run's weights after something about the model has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bonsaigpt.config import ModelConfig, MuonMatrices, OptimConfig, RunConfig, derive

__all__ = ["at_share", "trained_on"]


def at_share(optim: OptimConfig, share: float) -> dict[str, Any]:
    """Settings of ``optim`` whose learning rates are a share of those that the model was trained with from random
    weights, and that note these: so shares do not multiply where a tuned model is tuned again."""
    first = optim.pretrained_lr or optim.lr
    settings: dict[str, Any] = {"lr": first * share, "pretrained_lr": first}
    matrices = optim.matrices
    if isinstance(matrices, MuonMatrices):
        first = matrices.pretrained_lr or matrices.lr
        settings["matrices"] = matrices.model_dump() | {"lr": first * share, "pretrained_lr": first}
    return settings


def trained_on(
    config: RunConfig, *, model: ModelConfig, steps: int, share: float, train: Mapping[str, Any] | None = None
) -> RunConfig:
    """A run of ``steps`` steps with the changed model.

    The learning rates begin at ``share`` of the run's peaks, without warmup, since the optimizer's moments are kept,
    and fall along a straight line to a tenth of that. What the engine decides is left open again.

    Args:
        train: settings of the loop that change besides.
    """
    first = at_share(config.optim, 1.0)  # notes the rates of the pretraining; the share is of the run's own
    optim = first | {"lr": config.optim.lr * share, "schedule": {"kind": "linear", "warmup": 0, "final": 0.1}}
    if isinstance(config.optim.matrices, MuonMatrices):
        optim["matrices"] = first["matrices"] | {"lr": config.optim.matrices.lr * share}
    loop = {
        "steps": steps,
        "batch_ramp": {"kind": "none"},
        "context_ramp": {"kind": "none"},
        "micro_batch": 0,
        "workers": 0,
        "compile": "auto",
        "attention_kernel": "auto",
        "eval_interval": min(config.train.eval_interval, max(1, steps // 4)),
    }
    return derive(config, model=model.model_dump(exclude_none=True), optim=optim, train=loop | dict(train or {}))

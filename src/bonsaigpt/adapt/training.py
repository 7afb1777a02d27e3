"""The training that goes on from a run's weights after something about the model has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bonsaigpt.config import ModelConfig, RunConfig, derive

__all__ = ["trained_on"]


def trained_on(
    config: RunConfig, *, model: ModelConfig, steps: int, share: float, train: Mapping[str, Any] | None = None
) -> RunConfig:
    """A run of ``steps`` steps with the changed model.

    The learning rates begin at ``share`` of the run's peaks, without warmup, since the optimizer's moments are kept,
    and fall along a straight line to a tenth of that. What the engine decides is left open again.

    Args:
        train: settings of the loop that change besides.
    """
    optim = config.optim.model_dump(exclude_none=True) | {
        "lr": config.optim.lr * share,
        "schedule": {"kind": "linear", "warmup": 0, "final": 0.1},
    }
    if config.optim.matrices.kind == "muon":
        optim["matrices"] = optim["matrices"] | {"lr": config.optim.matrices.lr * share}
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

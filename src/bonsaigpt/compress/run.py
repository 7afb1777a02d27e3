"""From a run and a plan to a run: what is compressed, how it heals, and what is written down of it.

The result is a run like any other, born with weights of step 0: ``bonsai train RUN --resume`` heals it, and a kill in
the middle costs no more than it costs any training.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.compress.plan import Plan, write_plan
from bonsaigpt.compress.replace import Compressed
from bonsaigpt.config import RunConfig, derive
from bonsaigpt.data.batches import BatchSource
from bonsaigpt.train import start_state

__all__ = ["HEALING_RATE", "healing_config", "write_run"]

HEALING_RATE = 0.01
"""Peak change of a tensor in a step of healing, as a share of its own size."""


def healing_config(config: RunConfig, compressed: Compressed, *, steps: int, teacher: str | None) -> RunConfig:
    """The configuration of a run that heals what was compressed for so many steps.

    AdamW takes steps of about its rate in every element, whatever the tensor. But a factor of 4 values and one of
    600,000, or A and B of which one is scaled up and the other down, stand for the same matrix: so each tensor's rate
    is its own root mean square times ``HEALING_RATE``, and all change by the same share of themselves. What the parent
    left to the engine is left to it again, as another model computes in another way.

    Args:
        teacher: the address of the uncompressed run, to learn from its logits as well; None: from the text alone.
    """
    optim: dict[str, Any] = {
        "lr": HEALING_RATE,
        "pretrained_lr": None,  # rates are of another kind from here on
        "lr_scale": {name: _size(value) for name, value in compressed.values.items()},
        "matrices": {"kind": "adamw"},
        "schedule": {"kind": "linear", "warmup": steps // 20},
        "ema": 0.0,
        "distill": {"kind": "none"} if teacher is None else {"kind": "logits", "teacher": teacher},
    }
    train: dict[str, Any] = {
        "steps": steps,
        "eval_interval": min(config.train.eval_interval, max(1, steps // 4)),
        "workers": 0,
        "micro_batch": 0,
        "compile": "auto",
        "attention_kernel": "auto",
        "batch_ramp": {"kind": "none"},
        "context_ramp": {"kind": "none"},
    }
    about = f"{config.about}, compressed" if config.about else "compressed"
    model = compressed.config.model_dump(exclude_none=True)
    return derive(config.model_copy(update={"about": about}), model=model, optim=optim, train=train)


def write_run(
    target: Path,
    config: RunConfig,
    compressed: Compressed,
    plan: Plan,
    *,
    parent: RunDirectory,
    label: str,
    source: BatchSource,
    environment: dict[str, Any],
) -> RunDirectory:
    """Make the run: configuration, weights as of step 0, ``plan.toml``, and in environment.json what it came from and
    what every block cost.

    Raises:
        OutputError: the folder exists, or cannot be written (then nothing is left behind).
    """
    steps = [
        asdict(step) | {"settings": {n: s.model_dump() for n, s in step.settings.items()}} for step in compressed.steps
    ]
    record = environment | {
        "compressed": {
            "parent": label,
            "dense_loss": compressed.dense_loss,
            "loss": compressed.loss,
            "init": plan.init,
            "blocks": {step.pop("block"): step for step in steps},
        }
    }
    start = Checkpoint(model=compressed.values, optimizer={}, state=start_state(source))
    run = RunDirectory.create(target, config, parent.tokenizer, record, start=start)
    write_plan(target / "plan.toml", plan)
    return run


def _size(value: np.ndarray) -> float:
    """Root mean square to three digits; of a tensor of zeros what GPT-2 starts with."""
    return float(f"{float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))):.3g}") or 0.02

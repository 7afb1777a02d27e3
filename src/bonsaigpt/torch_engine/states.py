"""What a run's settings make of a model: a state that is ready for its first step, or for what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonsaigpt.config import RunConfig
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.carry import Carried
from bonsaigpt.torch_engine.compiling import compile_module, what_is_missing
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.guard import Guard
from bonsaigpt.torch_engine.kv.one_pass import OnePass
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.optim import Optimizer, freeze
from bonsaigpt.torch_engine.parallel import Layout, Replicated
from bonsaigpt.torch_engine.step import State
from bonsaigpt.torch_engine.teacher import read_teacher
from bonsaigpt.torch_engine.workers import WorkerPool, share_weights

__all__ = ["load_optimizer", "make_state", "read_through"]


def make_state(
    config: RunConfig, model: GPT, placement: Placement, world: World, pool: WorkerPool, carried: Carried | None
) -> State:
    """A state around the model, whose optimizer starts anew.

    Args:
        carried: the memory from batch to batch, empty, where the run has one.
    """
    device = placement.device
    # Dropout draws from the one generator of the process, which workers would pull from in no fixed order.
    pool = pool if config.model.dropout == 0 else WorkerPool()
    if config.train.parallel == "fsdp" and world.size > 1:
        from bonsaigpt.torch_engine.fsdp import Sharded

        [learner] = _learners(config, model, 1, device)
        layout: Layout = Sharded(learner, world, device)  # it moves what it keeps
    else:
        layout = Replicated(_learners(config, model.to(device), pool.count, device), world)
    optimizer = Optimizer(config.model, config.optim, layout, pool)
    averaged = None
    if optimizer.average is not None and isinstance(layout, Replicated):
        averaged = GPT(config.model).to(device)
        averaged.through = model.through
        for parameter, average in zip(averaged.parameters(), optimizer.average, strict=True):
            parameter.data = average
    return State(
        model=model,
        optimizer=optimizer,
        guard=Guard(
            spike=config.train.guard.spike,
            max_skips=config.train.guard.max_skips,
            device=device,
            loss_scaling=placement.dtype == torch.float16,
        ),
        layout=layout,
        pool=pool,
        carried=carried,
        averaged=averaged,
        teacher=read_teacher(config.optim.distill, device),
    )


def _learners(config: RunConfig, model: GPT, count: int, device: torch.device) -> list[Learner]:
    objective: dict[str, Any] = {"z_loss": config.optim.z_loss, "distill": config.optim.distill}
    model.through = read_through(config)
    learners = [Learner(model, **objective)]
    for _ in range(1, count):
        twin = GPT(config.model)
        share_weights(model, twin)
        learners.append(Learner(twin, **objective))
    for learner in learners:
        freeze(learner.model, config.optim)
        learner.model.through = model.through
        learner.model.recompute = config.train.recompute
        learner.model.attend_plainly(config.train.attention_kernel == "plain")
        if config.train.compile == "on" and what_is_missing(device) is None:
            compile_module(learner, device)
    return learners


def read_through(config: RunConfig) -> OnePass | None:
    """What rows are read through in training, where ``train.kv`` says what a cache will keep.

    Raises:
        ConfigError: the model cannot be trained so.
    """
    return OnePass(config.model, read_policy(config.train.kv)) if config.train.kv else None


def load_optimizer(state: State, saved: Mapping[str, np.ndarray | Tensor]) -> None:
    """Put back all but the weights: the optimizer's state, the memory, the guard's counts."""
    state.optimizer.load({name: v for name, v in saved.items() if name != "guard" and not name.startswith("memory.")})
    if state.carried is not None:
        state.carried.load(saved)
    if "guard" in saved:
        state.guard.load(saved["guard"])

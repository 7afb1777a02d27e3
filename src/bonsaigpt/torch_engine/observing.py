"""All that a step computes, level by level, so that another program can be held against it; in float64 it is the
yardstick of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import RunConfig
from bonsaigpt.data.batches import Batch
from bonsaigpt.processes import Process
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT, build
from bonsaigpt.torch_engine.states import load_optimizer, make_state
from bonsaigpt.torch_engine.step import State, train_step
from bonsaigpt.torch_engine.workers import WorkerPool
from bonsaigpt.trace import Observed

__all__ = ["observe"]

_PARTS = {"ln_1", "attn", "ln_2", "mlp", "ln_f"}
"""Modules whose results are activations, besides embeddings and whole blocks."""


def observe(
    config: RunConfig, model: Arrays, optimizer: Arrays, batch: Batch, *, placement: Placement, double: bool
) -> Observed:
    """A step at the peak rates from a saved state, and all on the way to it; see ``engines.Engine.observe``."""
    dtype = torch.float64 if double else torch.float32
    placement = replace(placement, dtype=dtype)
    made = build(config.model, values=model).to(dtype)
    state = make_state(config, made, placement, World(Process(), placement.device), WorkerPool(), None)
    load_optimizer(
        state, {name: value.astype(np.float64 if double else np.float32) for name, value in optimizer.items()}
    )
    learner = state.layout.learners[0]
    assert isinstance(learner, Learner)
    tokens, targets = (
        torch.from_numpy(array.astype(np.int64)).to(placement.device) for array in (batch.tokens_BT, batch.targets_BT)
    )
    found: Observed = {"weights": _state(state)}
    learner.eval()
    found["activations"], logits_BTV = _activations(learner.model, tokens)
    found["logits"] = {"logits": _host(logits_BTV)}
    objective, loss = learner(tokens, targets)
    (objective / batch.count).backward()
    found["loss"] = {"loss": _host(loss / batch.count)}
    named = learner.model.named_parameters()
    found["gradients"] = {name: _host(p.grad) for name, p in named if p.grad is not None}
    state.optimizer.zero_grad()
    train_step(state, batch, config=config, placement=placement, share=1.0, step=0)
    found["step"] = _state(state)
    return found


@torch.no_grad()
def _activations(model: GPT, tokens_BT: Tensor) -> tuple[Arrays, Tensor]:
    """By the names of the modules that make them, in the order in which they are made; and the logits."""
    seen: Arrays = {}

    def take(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, result: Tensor | tuple[Tensor, object]) -> None:
            seen[name] = _host(result[0] if isinstance(result, tuple) else result)

        return hook

    body = dict(model.transformer.named_modules())
    places = {name: name for name in body if name.rpartition(".")[2] in _PARTS}
    places |= {f"h.{layer}": f"h.{layer}" for layer in range(model.config.n_layer)} | {"drop": "embedded"}
    hooks = [body[place].register_forward_hook(take(f"transformer.{name}")) for place, name in places.items()]
    try:
        return seen, model.logits(model.hidden(tokens_BT))
    finally:
        for hook in hooks:
            hook.remove()


def _state(state: State) -> Arrays:
    tensors = state.optimizer.weights_to_use() | state.optimizer.tensors()
    return {name: _host(value) for name, value in tensors.items()}


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().copy()

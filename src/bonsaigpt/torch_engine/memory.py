"""How many bytes a step holds at its fullest moment, counted without computing.

The step is taken with fake tensors (torch's FakeTensorMode), which have shapes, types and lifetimes but no memory, and
every storage that comes or goes is counted. So all that autograd keeps is in it without a formula of the model: custom
functions, recomputation, autocast's copies, the chunks of the fused head, the optimizer's scratch. Not in it is what a
kernel takes for itself while it runs, nor what an allocator cannot use (see ``room.py``). A compiled step is counted as
if it were not; fusing only saves.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bonsaigpt.config import LogitsDistill, RunConfig
from bonsaigpt.processes import Process
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.optim import Optimizer, freeze
from bonsaigpt.torch_engine.parallel import Replicated
from bonsaigpt.torch_engine.states import read_through
from bonsaigpt.torch_engine.step import cuts
from bonsaigpt.torch_engine.teacher import Teacher, teacher_config
from bonsaigpt.torch_engine.workers import WorkerPool
from bonsaigpt.trace import StepMemory

__all__ = ["count_step", "step_memory"]

_WEIGHTS, _OPTIMIZER = "weights", "optimizer state"
_ACTIVATIONS, _LOGITS, _GRADIENTS = "activations", "logits and loss", "gradients"
_EACH_WORKERS = (_ACTIVATIONS, _LOGITS, _GRADIENTS)


def step_memory(config: RunConfig, placement: Placement, *, processes: int) -> StepMemory:
    """The bytes that a step of a resolved configuration will hold in one of so many processes."""
    train, workers = config.train, config.train.workers or 1
    rows, batch = train.micro_batch or train.batch_size, math.ceil(train.batch_size / processes)
    parts = cuts(batch, rows, workers)
    return count_step(
        config,
        placement,
        rows=max(last - first for first, last in parts),
        passes=math.ceil(len(parts) / workers),
        workers=min(workers, len(parts)),
        shards=processes if train.parallel == "fsdp" else 1,
    )


def count_step(
    config: RunConfig, placement: Placement, *, rows: int, passes: int = 1, workers: int = 1, shards: int = 1
) -> StepMemory:
    """The bytes of a step whose passes take ``rows`` sequences of a whole block.

    Args:
        passes: of each worker; from the second on, gradients are held from the start.
        workers: threads that are each in the middle of a pass at once, with activations and gradients of their own.
        shards: processes that share weights and optimizer state out among them. Gradients count whole: what FSDP puts
            together for a moment is less.
    """
    with FakeTensorMode(), torch.device(placement.device), _Held(workers) as held:
        held.by = _WEIGHTS
        model = GPT(config.model)
        freeze(model, config.optim)
        model.recompute = config.train.recompute
        model.through = read_through(config)
        model.attend_plainly(config.train.attention_kernel == "plain")
        learner = Learner(model, z_loss=config.optim.z_loss, distill=config.optim.distill).train()
        held.watch(model)
        teacher = None
        if isinstance(distill := config.optim.distill, LogitsDistill):
            teacher = Teacher(GPT(teacher_config(distill)), streams=distill.hidden > 0)
        held.by = _OPTIMIZER
        layout = Replicated([learner], World(Process(), placement.device))
        optimizer = Optimizer(config.model, config.optim, layout, WorkerPool())
        keep = torch.ones(())
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        optimizer.step(1.0, keep)  # the first one makes its state
        optimizer.zero_grad()
        state = held.now[_OPTIMIZER]

        held.by = _ACTIVATIONS
        tokens_BT = torch.zeros(rows, config.model.block_size, dtype=torch.long)
        documents_BT = tokens_BT.int() if getattr(config.data, "document_mask", False) else None
        held.begin()
        for _ in range(min(passes, 2)):
            held.by = _ACTIVATIONS
            with placement.autocast():
                taught = None if teacher is None else teacher(tokens_BT, documents_BT)
                objective, loss = learner(tokens_BT, tokens_BT, documents_BT, taught)
            held.by = _GRADIENTS
            objective.backward()
            del objective, loss, taught
        fullest = held.fullest
        held.by = _OPTIMIZER
        held.workers = 1  # their gradients are one by now
        held.begin()
        optimizer.step(1.0, keep)
        fullest = max(fullest, held.fullest, key=lambda parts: sum(parts.values()))
    parts = {name: fullest[name] for name in (_WEIGHTS, _OPTIMIZER, _GRADIENTS, _ACTIVATIONS, _LOGITS)}
    for name in (_WEIGHTS, _OPTIMIZER):
        parts[name] = math.ceil(parts[name] / shards)
    return StepMemory(parts=parts, state=state)


class _Held(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, by what they were made for."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers
        self.by = _WEIGHTS
        """What is made from now on counts as."""
        self.now: Counter[str] = Counter()
        """Of the one worker that is followed."""
        self.fullest: dict[str, int] = {}
        """Of all workers, when it was most."""
        self._most = 0
        self._storages: dict[int, tuple[str, int]] = {}

    def begin(self) -> None:
        """Forget the fullest moment so far."""
        self._most = 0
        self._look()

    def watch(self, model: GPT) -> None:
        """Tell what blocks make from what the head makes, also where a block is computed again."""
        outside: list[str] = []

        def enter(*_: Any) -> None:
            outside.append(self.by)
            self.by = _ACTIVATIONS

        def leave(*_: Any) -> None:
            self.by = outside.pop()

        def head(*_: Any) -> None:
            self.by = _LOGITS

        for block in model.transformer.h:
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave, always_call=True)  # a recomputation leaves early, by an exception
        model.transformer.ln_f.register_forward_hook(head)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    self._storages[storage._cdata] = self.by, storage.nbytes()
                    self.now[self.by] += storage.nbytes()
                    weakref.finalize(storage, self._let_go, storage._cdata)
                    self._look()
        return made

    def _let_go(self, address: int) -> None:
        name, size = self._storages.pop(address)
        self.now[name] -= size

    def _look(self) -> None:
        held = {name: size * (self.workers if name in _EACH_WORKERS else 1) for name, size in self.now.items()}
        if (total := sum(held.values())) > self._most:
            self._most, self.fullest = total, Counter(held)

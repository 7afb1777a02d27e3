"""How the weights of a run lie on its processes: whole in each one (DDP, here), or cut into shards (``fsdp.py``).

Both ways average gradients over the processes, while a step divides its loss by the count of the whole batch. So the
loss is multiplied by the number of processes first, and what comes out is the gradient of the mean over the whole
batch, whoever computed which row of it. Micro-batches before the last neither send nor wait: forward and backward pass
run with synchronisation off (switched between the two, gradients are left apart: build-nanogpt, issue 30).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.loss import Learner

if TYPE_CHECKING:
    from bonsaigpt.torch_engine.fsdp import Sharded

__all__ = ["Layout", "Replicated"]

Layout: TypeAlias = "Replicated | Sharded"  # importing FSDP takes a second, which only those who use it pay


class Replicated:
    """Whole weights in every process, or in the only one."""

    def __init__(self, learners: Sequence[Learner], world: World) -> None:
        self.world = world
        self.parameters: dict[str, Tensor] = dict(learners[0].model.named_parameters())
        self.learners: list[nn.Module] = list(learners)
        if world.size > 1:
            spread = DistributedDataParallel(learners[0], gradient_as_bucket_view=True)
            spread.broadcast_buffers = False  # they are constants; as an argument it has another name since torch 2.13
            self.learners = [spread]

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        """Context of the forward and backward pass of a micro-batch, the ``last`` of its step or not."""
        learner = self.learners[0]
        if last or not isinstance(learner, DistributedDataParallel):
            yield
        else:
            with learner.no_sync():
                yield

    def gradients(self) -> list[Tensor]:
        """The gradients of ``parameters``: the workers' are added, in their order, into those of the first."""
        first, *others = (list(learner.parameters()) for learner in self.learners)
        for other in others:
            for ours, theirs in zip(first, other, strict=True):
                if ours.grad is not None and theirs.grad is not None:  # a worker without rows has none
                    ours.grad += theirs.grad
                theirs.grad = None
        return [p.grad for p in first if p.grad is not None]

    def over_shards(self, sums: Tensor) -> Tensor:
        """Sums over a part of the weights, added up over all parts."""
        return sums

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """While entered, the model can be called as it is."""
        yield

    def totals(self, gradients: list[Tensor], loss: Tensor) -> tuple[Tensor, Tensor]:
        """Norm of the whole gradient and sum of the loss, over all processes; the same bits in each."""
        return torch.nn.utils.get_total_norm(gradients), self.world.sum_(loss)

"""Weights that are cut into shards: of every one some rows in each process (FSDP2, torch's ``fully_shard``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from bonsaigpt.torch_engine.distributed import World
from bonsaigpt.torch_engine.loss import Learner

__all__ = ["Sharded"]


class Sharded:
    """A block's weights are put together only while it computes. It has what ``Replicated`` has.

    The optimizer sees plain tensors over the memory of the shards: nothing it does needs to know more, but for Muon.
    """

    def __init__(self, learner: Learner, world: World, device: torch.device) -> None:
        self.world = world
        mesh = init_device_mesh(device.type, (world.size,))
        for block in learner.model.transformer.h:
            fully_shard(block, mesh=mesh)
        self._root = fully_shard(learner, mesh=mesh)
        assert isinstance(self._root, FSDPModule)
        self.learners: Sequence[nn.Module] = [learner]
        self._whole: dict[str, DTensor] = {
            name: parameter for name, parameter in learner.model.named_parameters() if isinstance(parameter, DTensor)
        }
        self.parameters: dict[str, Tensor] = {name: p.to_local().detach() for name, p in self._whole.items()}

    @contextmanager
    def passing(self, *, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last)
        yield

    def gradients(self) -> list[Tensor]:
        found: list[Tensor] = []
        for name, parameter in self._whole.items():
            if parameter.grad is None:  # it is frozen
                continue
            assert isinstance(parameter.grad, DTensor)
            gradient = parameter.grad.to_local()
            self.parameters[name].grad = gradient
            parameter.grad = None
            found.append(gradient)
        return found

    def over_shards(self, sums: Tensor) -> Tensor:
        return self.world.sum_(sums)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        assert isinstance(self._root, FSDPModule)
        self._root.unshard()  # what is in no block; those put themselves together
        yield
        self._root.reshard()

    def totals(self, gradients: list[Tensor], loss: Tensor) -> tuple[Tensor, Tensor]:
        squares, loss = self.world.sum_(torch.stack([torch.nn.utils.get_total_norm(gradients).square(), loss]))
        return squares.sqrt(), loss

    def spread(self, name: str, local: Tensor) -> DTensor:
        """A tensor that is cut like a parameter, from this process' rows of it."""
        like = self._whole[name]
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def whole(self, name: str, local: Tensor) -> Tensor:
        """All rows of a tensor that is cut like a parameter; all processes must ask."""
        return self.spread(name, local).full_tensor()

    def own(self, name: str, whole: Tensor) -> Tensor:
        """This process' rows of a whole tensor that every process has."""
        like = self._whole[name]
        return (
            DTensor.from_local(whole, like.device_mesh, run_check=False)
            .redistribute(placements=like.placements)
            .to_local()
        )

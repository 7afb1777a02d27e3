"""Muon for weights that are cut into shards: the momentum stays cut, only its orthogonalisation sees a whole matrix.

Every process puts the matrix together and orthogonalises it, then keeps its own rows. The work is repeated, but it is
small beside the passes of a real batch, and nothing but the momentum has to travel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bonsaigpt.config import MuonMatrices
from bonsaigpt.torch_engine.fsdp import Sharded
from bonsaigpt.torch_engine.muon import Matrix, gradient_of, number_format, orthogonalize, silence_, size_factor

__all__ = ["ShardedMuon"]


class ShardedMuon:
    """The optimizer of the matrices inside blocks; it has the methods of ``Muon``."""

    def __init__(self, matrices: Sequence[Matrix], config: MuonMatrices, layout: Sharded) -> None:
        self.config, self.layout = config, layout
        self._maps: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            self._maps.setdefault(matrix.name, []).append(matrix)
        self._momenta = {name: torch.zeros_like(maps[0].parameter) for name, maps in self._maps.items()}

    @torch.no_grad()
    def step(self, share: float, keep: Tensor) -> None:
        """Update at ``share`` of the peak rate if ``keep`` (a scalar on the device) is 1; if it is 0 change nothing."""
        config = self.config
        for name, maps in self._maps.items():
            weight, momentum, scale = maps[0].parameter, self._momenta[name], maps[0].lr_scale
            gradient = silence_(gradient_of(maps[0]).float(), keep)
            momentum.lerp_(gradient, (1.0 - config.momentum) * keep)
            whole = self.layout.whole(name, gradient.lerp(momentum, config.momentum))
            update = self.layout.own(name, torch.cat([self._orthogonal(whole[m.first : m.last]) for m in maps]))
            if config.weight_decay:
                weight.mul_(1.0 - config.lr * scale * share * config.weight_decay * keep)
            weight.addcmul_(update.to(weight.dtype), keep.to(weight.dtype), value=-config.lr * share * scale)

    def _orthogonal(self, map_IJ: Tensor) -> Tensor:
        config = self.config
        return orthogonalize(map_IJ[None], config.iterations, number_format(config))[0] * size_factor(*map_IJ.shape)

    def names(self) -> list[str]:
        """Parameters that are updated here."""
        return list(self._maps)

    def arrays(self) -> dict[str, Tensor]:
        """This process' rows of the momentum of each parameter, under the parameter's name."""
        return self._momenta

    def load(self, momenta: dict[str, Tensor]) -> None:
        """Put back what ``arrays`` gave."""
        for name, momentum in self._momenta.items():
            momentum.copy_(momenta[name])

"""The optimizer of a run: AdamW and perhaps Muon over the spec's table, an average of the weights, and their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import ModelConfig, MuonMatrices, OptimConfig
from bonsaigpt.errors import CheckpointError, ConfigError
from bonsaigpt.spec import Param, parameters
from bonsaigpt.torch_engine.muon import Matrix, Muon
from bonsaigpt.torch_engine.parallel import Layout, Replicated
from bonsaigpt.torch_engine.workers import WorkerPool

if TYPE_CHECKING:
    from bonsaigpt.torch_engine.sharded_muon import ShardedMuon

__all__ = ["Optimizer", "freeze"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Have no gradient computed of what ``lr_scale`` freezes.

    Raises:
        ConfigError: nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.scale_of(name) > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("optim.lr_scale freezes every parameter: give some of them a factor above 0")


class Optimizer:
    """Changes the weights of one model; which parameter is changed how is read from the spec."""

    def __init__(self, model: ModelConfig, config: OptimConfig, layout: Layout, pool: WorkerPool) -> None:
        self.config = config
        self.parameters = layout.parameters
        table = [p for p in parameters(model) if p.tied_to is None and config.scale_of(p.name) > 0]
        muon = config.matrices if isinstance(config.matrices, MuonMatrices) else None
        matrices = [p for p in table if muon is not None and p.role == "matrix"]
        self.muon: Muon | ShardedMuon | None = None
        if muon is not None and matrices:
            maps = [m for p in matrices for m in self._maps(p)]
            if isinstance(layout, Replicated):
                self.muon = Muon(maps, muon, pool)
            else:
                from bonsaigpt.torch_engine.sharded_muon import ShardedMuon

                self.muon = ShardedMuon(maps, muon, layout)
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for p in table:
            if p not in matrices:
                key = (config.weight_decay * p.decay, p.lr_scale * config.scale_of(p.name))
                groups.setdefault(key, []).append(self.parameters[p.name])
        device = next(iter(self.parameters.values())).device
        # Fused: one kernel over all tensors, on a CPU too, and the only form that can skip a step without waiting.
        self.fused = device.type in ("cpu", "cuda")
        sets = [{"params": g, "weight_decay": decay, "scale": scale} for (decay, scale), g in groups.items()]
        self.adamw = torch.optim.AdamW(
            sets or [{"params": [], "scale": 1.0}],  # Muon may have all that is trained
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=self.fused,
        )
        self.average = [p.detach().clone() for p in self.parameters.values()] if config.ema else None

    def _maps(self, p: Param) -> list[Matrix]:
        ends = np.cumsum(p.stacked or p.shape[:1]).tolist()
        starts = [0, *ends[:-1]]
        scale = self.config.scale_of(p.name)
        return [Matrix(p.name, self.parameters[p.name], i, j, scale) for i, j in zip(starts, ends, strict=True)]

    @torch.no_grad()
    def step(self, share: float, keep: Tensor) -> None:
        """Change the weights by their gradients at ``share`` of the peak rates; not at all where ``keep`` is 0."""
        for group in self.adamw.param_groups:
            group["lr"] = self.config.lr * group["scale"] * share
        if self.fused:
            self.adamw.found_inf = 1.0 - keep  # pyright: ignore[reportAttributeAccessIssue]  # torch's: skip where 1
            self.adamw.step()
        elif keep.item():
            self.adamw.step()
        if self.muon is not None:
            self.muon.step(share, keep)
        if self.average is not None:
            for average, parameter in zip(self.average, self.parameters.values(), strict=True):
                average.lerp_(parameter, (1.0 - self.config.ema) * keep.to(average.dtype))

    def zero_grad(self) -> None:
        """Give the gradients' memory back."""
        for parameter in self.parameters.values():
            parameter.grad = None

    # ------------------------------------------------------------------ state

    def weights_to_use(self) -> dict[str, Tensor]:
        """The average of the weights, or where none is kept the weights; not copies."""
        if self.average is None:
            return dict(self.parameters)
        return dict(zip(self.parameters, self.average, strict=True))

    @torch.no_grad()
    def put_weights(self, saved: Mapping[str, Tensor]) -> None:
        """Take what ``weights_to_use`` gave."""
        for name, weight in self.weights_to_use().items():
            self.parameters[name].copy_(saved[name])
            weight.copy_(saved[name])

    def tensors(self) -> dict[str, Tensor]:
        """``exp_avg.<parameter>``, ``exp_avg_sq.<parameter>``, ``momentum.<parameter>``, the count of AdamW's steps,
        and beside an average of the weights these themselves as ``weight.<parameter>``; as they are, not copies. Empty
        before the first step."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.adamw.state.get(parameter, {})
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
            if "step" in state:
                tensors["steps"] = state["step"]
        if not tensors and any(group["params"] for group in self.adamw.param_groups):
            return {}
        if self.muon is not None:
            tensors |= {f"momentum.{name}": value for name, value in self.muon.arrays().items()}
        if self.average is not None:
            tensors |= {f"weight.{name}": value for name, value in self.parameters.items()}
        return tensors

    def arrays(self) -> Arrays:
        """``tensors`` on the host."""
        return {name: value.detach().float().cpu().numpy().copy() for name, value in self.tensors().items()}

    @torch.no_grad()
    def load(self, saved: Mapping[str, np.ndarray | Tensor]) -> None:
        """Put a saved state back. The model holds the saved weights; they become the average, if there is one."""
        if not saved:
            return

        def like(name: str, tensor: Tensor) -> Tensor:
            value = saved.get(name)
            if value is None or tuple(value.shape) != tuple(tensor.shape):
                raise CheckpointError(f"the optimizer's state lacks {name}: start afresh with --init instead")
            return torch.as_tensor(value).clone().to(tensor.device)

        count = torch.as_tensor(saved.get("steps", 0.0), dtype=torch.float32)
        for group in self.adamw.param_groups:
            names = {id(parameter): name for name, parameter in self.parameters.items()}
            for parameter in group["params"]:
                state = {moment: like(f"{moment}.{names[id(parameter)]}", parameter) for moment in _MOMENTS}
                # The fused CUDA kernel counts on the device.
                state["step"] = count.clone().to(parameter.device if parameter.is_cuda else "cpu")
                self.adamw.state[parameter] = state
        if self.muon is not None:
            self.muon.load({m: like(f"momentum.{m}", self.parameters[m]) for m in self.muon.names()})
        if self.average is not None and f"weight.{next(iter(self.parameters))}" in saved:
            for name, parameter in self.parameters.items():
                parameter.copy_(like(f"weight.{name}", parameter))

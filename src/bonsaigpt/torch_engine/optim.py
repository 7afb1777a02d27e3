"""AdamW over the groups of the spec's decay table, and the optimizer's state under the parameters' names."""

from __future__ import annotations

import numpy as np
import torch

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.config import OptimConfig
from bonsaigpt.errors import CheckpointError
from bonsaigpt.spec import parameters
from bonsaigpt.torch_engine.model import GPT

__all__ = ["load_state", "make_optimizer", "state_arrays"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: GPT, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with two groups, decayed and not. Fused: one kernel over all tensors, on the CPU too."""
    named = dict(model.named_parameters())
    decayed = {p.name for p in parameters(model.config) if p.decay}
    groups = [
        {"params": [t for name, t in named.items() if name in decayed], "weight_decay": config.weight_decay},
        {"params": [t for name, t in named.items() if name not in decayed], "weight_decay": 0.0},
    ]
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device in ("cpu", "cuda"),
    )


def state_arrays(model: GPT, optimizer: torch.optim.AdamW) -> Arrays:
    """The moments as ``exp_avg.<parameter>`` and ``exp_avg_sq.<parameter>``; empty before the first step."""
    arrays: Arrays = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                arrays[f"{moment}.{name}"] = state[moment].detach().float().cpu().numpy().copy()
    return arrays


def load_state(model: GPT, optimizer: torch.optim.AdamW, arrays: Arrays, *, step: int) -> None:
    """Put saved moments back, as if ``step`` steps had been taken."""
    if not arrays and step == 0:
        return
    for name, parameter in model.named_parameters():
        state: dict[str, torch.Tensor] = {"step": torch.tensor(float(step))}
        for moment in _MOMENTS:
            value = arrays.get(f"{moment}.{name}")
            if value is None or value.shape != tuple(parameter.shape):
                raise CheckpointError(f"the optimizer's state lacks {moment}.{name}: start afresh with --init instead")
            state[moment] = torch.from_numpy(np.array(value)).to(parameter.device)
        if parameter.device.type == "cuda":  # the fused CUDA kernel counts on the device
            state["step"] = state["step"].to(parameter.device)
        optimizer.state[parameter] = state

"""An MLP fitted by gradient: its factors learn, on the inputs that they really get, what the teacher's
residual stream is behind them.

The seed project's "distilled initialisation": random inputs did not teach anything, real ones do. Its other idea, batch
norm, is here what is left of it for a loss: errors of each channel are measured in the channel's own deviation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bonsaigpt.checkpoint import Arrays
from bonsaigpt.torch_engine.calibrate import watching
from bonsaigpt.torch_engine.model import GPT

__all__ = ["fit_mlp"]

_RATE = 0.01
"""Peak change of a factor in a step, as a share of its own size: whatever its scale, it learns alike."""
_BATCH = 8192
"""Tokens in a step."""


def fit_mlp(
    student: GPT,
    mlp: str,
    batches: Sequence[np.ndarray],
    *,
    teacher: GPT,
    steps: int,
    normalise: bool,
    rate: float = _RATE,
) -> tuple[Arrays, tuple[float, float]]:
    """Train the parameters of one MLP (``transformer.h.0.mlp``) with Adam for so many steps.

    Args:
        batches: tokens (B, T); the MLP's inputs are what ``student`` makes of them before it.
        normalise: divide the error of each channel by the deviation of the teacher's.

    Returns:
        The parameters by name, and E||error||^2 over the power that is wished for, before and after. It is
        the better of both ends that is returned: a fit that diverged gives back what it began with.
    """
    if student.config.norm_position == "post":
        raise ValueError("an MLP is fitted to the stream behind it, which post-norm models keep nowhere")
    module, norm = student.get_submodule(mlp), f"{mlp.removesuffix('mlp')}ln_2"
    data = [_wishes(student.eval(), teacher.eval(), tokens, norm, mlp) for tokens in batches]
    scale_D = torch.cat([wished.flatten(0, -2) for _, wished in data]).std(dim=0).clamp_min(1e-8)
    scale_D = scale_D if normalise else scale_D.square().mean().sqrt().expand_as(scale_D)
    parameters = dict(module.named_parameters())
    sizes = {name: p.detach().square().mean().sqrt().item() or 1.0 for name, p in parameters.items()}
    groups = [{"params": [p], "size": sizes[name]} for name, p in parameters.items()]
    adam = torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.95))
    before, kept = _error(module, data), {n: p.detach().clone() for n, p in parameters.items()}
    rows = min(len(data), max(1, _BATCH // max(1, data[0][0].shape[0] * data[0][0].shape[1])))  # all there is at most
    for step in range(steps):
        share = min(1.0, (step + 1) / (0.05 * steps)) * (1.0 - step / steps)
        for group in adam.param_groups:
            group["lr"] = rate * group["size"] * share
        adam.zero_grad()
        for turn in range(rows):
            x_BTD, wished_BTD = data[(step * rows + turn) % len(data)]
            off = (module(x_BTD) - wished_BTD) / scale_D
            off.square().mean().backward()
        adam.step()
    after = _error(module, data)
    if after > before:
        after = before
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])
    found = {f"{mlp}.{name}": p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}
    return found, (before, after)


@torch.no_grad()
def _wishes(student: GPT, teacher: GPT, tokens_BT: np.ndarray, norm: str, mlp: str) -> tuple[Tensor, Tensor]:
    """What the MLP gets, and what it should make of it: (B, T, D) each."""
    tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64)).to(next(student.parameters()).device)
    with watching(student, [norm]) as ours:
        student.hidden(tokens)
    with watching(teacher, [norm, mlp]) as theirs:
        teacher.hidden(tokens)
    stream_BTD, x_BTD = ours[norm]
    return x_BTD, theirs[norm][0] + theirs[mlp][1] - stream_BTD


@torch.no_grad()
def _error(module: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> float:
    off = sum((module(x) - wished).square().sum().item() for x, wished in data)
    return off / sum(wished.square().sum().item() for _, wished in data)

"""The model that teaches another one: read from its run, never changed, without dropout and without gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bonsaigpt.checkpoint import RunDirectory, split_address
from bonsaigpt.config import LogitsDistill, ModelConfig, NarrowStructure, NoDistill
from bonsaigpt.structure import merge
from bonsaigpt.torch_engine.loss import Taught
from bonsaigpt.torch_engine.model import GPT, build

__all__ = ["Teacher", "read_teacher", "teacher_config"]


class Teacher:
    """What it says of tokens is a constant to whoever learns from it. Threads may ask at once."""

    def __init__(self, model: GPT, *, streams: bool) -> None:
        self.model = model.eval().requires_grad_(False)
        self.streams = streams

    @torch.no_grad()  # and not inference mode: what comes from that cannot be kept for a backward pass
    def __call__(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Taught:
        """Logits, and the residual streams if they are wanted."""
        streams: list[Tensor] = []
        hidden_BTD = self.model.hidden(tokens_BT, documents_BT=documents_BT, streams=streams if self.streams else None)
        return (self.model.logits(hidden_BTD), *streams)


def teacher_config(distill: LogitsDistill) -> ModelConfig:
    """The shape of the teacher; every weight dense, as ``read_teacher`` makes it."""
    place, _ = split_address(distill.teacher)
    config = RunDirectory.open(Path(place)).config.model
    narrow = {glob: setting for glob, setting in config.structure.items() if isinstance(setting, NarrowStructure)}
    return config.model_copy(update={"structure": narrow})


def read_teacher(distill: LogitsDistill | NoDistill, device: torch.device) -> Teacher | None:
    """The teacher of a run, on the device; None where there is none.

    Raises:
        CheckpointError: the run or its checkpoint is missing or damaged.
    """
    if not isinstance(distill, LogitsDistill):
        return None
    place, which = split_address(distill.teacher)
    run = RunDirectory.open(Path(place))
    config, values = merge(run.config.model, run.load(which, optimizer=False).model)
    return Teacher(build(config, values=values).to(device), streams=distill.hidden > 0)

"""What this engine does not compute, refused in one sentence before anything is made."""

from __future__ import annotations

from typing import NoReturn

from bonsaigpt.config import LatentAttention, LogitsDistill, ModelConfig, RunConfig
from bonsaigpt.errors import DeviceError

__all__ = ["REFUSED", "refuse", "refuse_model", "refuse_run"]

REFUSED = {
    "attention_maps": "show where attention looks",
    "cache": "hand out a cache",
    "choice_scores": "choose between labels (`bonsai task`)",
    "fit_mlp": "fit MLPs (`bonsai compress`)",
    "map_sums": "gather moments of activations (`bonsai compress`)",
    "reader": "read through a cache policy (--kv)",
    "target_scores": "score single targets (`bonsai eval --details`, `bonsai harness`)",
    "trace": "record the parts of a step (`bonsai profile`), which are one program in XLA",
    "write_graph": "write its step as a graph (`bonsai export`)",
}
"""Methods of ``bonsaigpt.engines.Engine`` that are not here, and what they would do."""


def refuse_model(config: ModelConfig) -> None:
    """Raise ``DeviceError`` for a model that this engine does not compute."""
    if isinstance(config.attention, LatentAttention):
        refuse("compute latent attention (model.attention.kind)")
    if config.experts > 1:
        refuse("compute mixtures of experts (model.mlp.kind)")


def refuse_run(config: RunConfig) -> None:
    """Raise ``DeviceError`` for a run that this engine does not compute."""
    refuse_model(config.model)
    if isinstance(config.optim.distill, LogitsDistill):
        refuse("learn from a teacher (optim.distill)")
    if config.optim.objective.kind != "likelihood":
        refuse("learn from preferences or rewards (optim.objective)")
    if config.train.memory.kind != "none":
        refuse("carry a memory from batch to batch (train.memory)")
    if config.train.kv:
        refuse("train through a cache policy (train.kv)")


def refuse(what: str) -> NoReturn:
    """Raise ``DeviceError``: the engine does not do that, and who does."""
    raise DeviceError(f"the JAX engine does not {what}: use --engine torch")

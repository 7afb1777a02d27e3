"""Number formats that were left open: decided before the first step, kept in the run's settings.

On a GPU the data sheet decides (``device.py``). A CPU with bf16 instructions multiplies matrices twice as fast in bf16,
but the casts around each product cost a small model as much as that wins, and a short run gains nothing that would be
worth other bits than everybody else's: so it is measured, and only for runs that take a while.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bonsaigpt.config import MuonMatrices, RunConfig, derive
from bonsaigpt.torch_engine.device import bf16_native

__all__ = ["decide_matrices", "decide_precision"]

_LONG = 120.0
"""Seconds of fp32 training from which on a CPU's bf16 is tried."""
_WORTH = 1.2
"""Times as fast that bf16 must measure: less is not worth its rounding."""


def decide_precision(
    config: RunConfig, device: torch.device, seconds_a_step: Callable[[RunConfig], float], *, begin: int = 0
) -> tuple[str, str]:
    """Resolve ``train.precision`` on a CPU, and say why; elsewhere it stays as it is.

    Args:
        seconds_a_step: measures a step on scratch weights under a configuration whose settings are resolved.
        begin: steps that are done already.
    """
    asked = config.train.precision
    if asked != "auto" or device.type != "cpu":
        return asked, "as asked" if asked != "auto" else "by the device"
    native, reason = bf16_native(device)
    if not native:
        return "fp32", f"fp32: {reason}"
    before = seconds_a_step(_eager(config, "fp32"))
    if (config.train.steps - begin) * before < _LONG:
        return "fp32", "fp32: the run is too short to try bf16"
    gain = before / seconds_a_step(_eager(config, "bf16"))
    if gain < _WORTH:
        return "fp32", f"fp32: a step in bf16 measured {gain:.2f}x as fast, not worth its rounding"
    return "bf16", f"bf16: {gain:.2f}x as fast as fp32, measured"


def decide_matrices(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """Resolve ``optim.matrices.precision`` of Muon, and say why."""
    matrices = config.optim.matrices
    assert isinstance(matrices, MuonMatrices)
    if matrices.precision != "auto":
        return matrices.precision, "as asked"
    if config.train.precision in ("fp32", "tf32"):
        return "fp32", f"fp32, as train.precision = '{config.train.precision}' asks"
    native, reason = bf16_native(device)
    return ("bf16" if native else "fp32"), reason


def _eager(config: RunConfig, precision: str) -> RunConfig:
    """What ``decide_compiling`` measures first, so that it is measured once."""
    kernel = config.train.attention_kernel
    settings = {"precision": precision, "compile": "off", "attention_kernel": "sdpa" if kernel == "auto" else kernel}
    return derive(config, train=settings)

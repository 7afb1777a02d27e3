"""Which device and which precision, and why: the reason is printed and kept in environment.json."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bonsaigpt.errors import DeviceError

__all__ = ["Placement", "choose_placement"]


@dataclass(frozen=True)
class Placement:
    """Where and in which number format a model computes."""

    devices: tuple[Any, ...]
    """Of all processes."""
    dtype: Any
    why: str

    @property
    def own(self) -> tuple[Any, ...]:
        """Those of this process."""
        return tuple(device for device in self.devices if device.process_index == jax.process_index())

    @property
    def device(self) -> Any:
        """The first of this process."""
        return self.own[0]

    @property
    def is_gpu(self) -> bool:
        return self.device.platform == "gpu"


def choose_placement(device: str = "auto", precision: str = "auto", threads: int = 0) -> Placement:
    """Resolve `auto`, and refuse what the machine cannot do.

    ``threads``: of XLA on a CPU; they count for the whole process, from its first use of JAX on.

    Raises:
        DeviceError: the device is not there, or does not compute in the asked precision.
    """
    if threads:
        os.environ["NPROC"] = str(threads)  # what XLA's pool of threads asks
    chosen, why = _devices(device)
    platform = chosen[0].platform
    is_gpu = platform == "gpu"
    if precision == "fp16":
        raise DeviceError("the JAX engine has no loss scaling for fp16: use bf16, fp32 or auto, or --engine torch")
    if precision in ("tf32", "bf16") and not is_gpu:
        raise DeviceError(f"train.precision = '{precision}' would be slow on {platform}: use fp32, or auto")
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    if precision == "bf16" or (precision == "auto" and is_gpu):
        return Placement(
            chosen, jnp.bfloat16, f"{why}; bf16{': the GPU has it' if precision == 'auto' else ' as asked'}"
        )
    words = f"{precision} as asked" if precision != "auto" else "fp32: bf16 was not measured in XLA on CPUs"
    return Placement(chosen, jnp.float32, f"{why}; {words}")


def _devices(device: str) -> tuple[tuple[Any, ...], str]:
    if device == "auto":
        found = tuple(jax.devices())
        kind = found[0].device_kind if found[0].platform == "gpu" else found[0].platform
        return found, f"{kind}: {'what' if len(found) == 1 else f'the {len(found)} devices that'} JAX finds"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise DeviceError(f"train.device = '{device}' is not one of the JAX engine's: use auto, cpu, cuda or cuda:1")
    try:
        found = tuple(jax.devices(kind))
    except RuntimeError:
        raise DeviceError(
            f"train.device = '{device}', but this JAX finds none: use cpu or auto, or install jax[cuda12]"
        ) from None
    if int(number or 0) >= len(found):
        raise DeviceError(f"train.device = '{device}', but JAX finds {len(found)} of them: use {kind} or auto")
    return (found[int(number)],) if number else found, f"{device}, as asked"

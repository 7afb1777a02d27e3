"""Which device and which precision, and why: the reason is printed and kept in environment.json."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from bonsaigpt.errors import DeviceError
from bonsaigpt.room import host_room
from bonsaigpt.trace import Room
from bonsaigpt.units import named

__all__ = ["NUMBER_FORMATS", "Placement", "bf16_native", "choose_placement", "room", "synchronize"]


NUMBER_FORMATS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What matrix products are held in, by the names of ``train.precision``."""


@dataclass(frozen=True)
class Placement:
    """Where and in which number format a model computes."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in ``dtype``, everything delicate in float32; nothing at all for float32 and 64."""
        if self.dtype in (torch.float32, torch.float64):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_placement(device: str = "auto", precision: str = "auto", threads: int = 0) -> Placement:
    """Resolve `auto`, refuse what the machine cannot do, and set the number of CPU threads.

    Raises:
        DeviceError: the device is not there, or does not compute in the asked precision.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen, why = _device(device)
    native, reason = bf16_native(chosen)
    if precision in ("fp16", "tf32") and chosen.type != "cuda":
        raise DeviceError(f"train.precision = '{precision}' needs a CUDA device, this is {chosen}: use fp32, or auto.")
    if precision == "fp16" or (precision == "auto" and _fp16_native(chosen) and not native):
        asked = "as asked" if precision == "fp16" else reason
        return Placement(chosen, torch.float16, f"{why}; fp16 with a loss scaler: {asked}")
    if precision == "tf32":
        if not native:
            raise DeviceError(f"train.precision = 'tf32': this device has none ({reason}). Use fp32, or auto.")
        torch.set_float32_matmul_precision("high")
        return Placement(chosen, torch.float32, f"{why}; tf32 as asked")
    if precision == "bf16":
        if not native:
            raise DeviceError(f"train.precision = 'bf16' would be slow here: {reason}. Use fp32, or auto.")
        return Placement(chosen, torch.bfloat16, f"{why}; bf16 as asked")
    # On a CPU bf16 pays from some size of the model on: a run measures that before it begins (formats.py).
    if precision == "auto" and native and chosen.type == "cuda":
        return Placement(chosen, torch.bfloat16, f"{why}; bf16: {reason}")
    asked = "as asked" if precision == "fp32" else "bf16 is for long runs alone" if native else reason
    return Placement(chosen, torch.float32, f"{why}; fp32: {asked}")


def _device(device: str) -> tuple[torch.device, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"cuda: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "mps: no CUDA device here"
        return torch.device("cpu"), f"cpu with {named(torch.get_num_threads(), 'thread')}: no GPU here"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"train.device = '{device}' is no device: use auto, cpu, cuda, cuda:1 or mps") from None
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"train.device = '{device}' is not supported: use auto, cpu, cuda, cuda:1 or mps")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"train.device = '{device}', but this machine has {torch.cuda.device_count()} CUDA devices: use cpu or auto"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("train.device = 'mps', but this is no Mac with Metal: use cpu or auto")
    return chosen, f"{device}, as asked"


def _fp16_native(device: torch.device) -> bool:
    """Whether fp16 matrix products run on tensor cores: compute capability 7.0 on (V100, T4)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def bf16_native(device: torch.device) -> tuple[bool, str]:
    """Whether matrix products in bf16 run on instructions of their own."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # `is_bf16_supported` says yes to emulation as well; compute capability 8.0 is where the hardware begins.
        return major >= 8, f"compute capability {major}.{minor}, native bf16 from 8.0 on"
    if device.type == "cpu":
        flags = [f for f in ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if getattr(torch.cpu, f, bool)()]
        if flags:
            return True, "this CPU has bf16 instructions"
        return False, "this CPU has no bf16 matrix instructions"
    return False, f"bf16 on {device.type} was not measured"


def room(device: torch.device) -> Room | None:
    """The memory of a device, and what of it is free now; None where the system does not tell."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Room(total - torch.mps.driver_allocated_memory(), total)
    return host_room()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""How fast a device multiplies and copies: from its data sheet, or measured here.

MFU is work over time over a ceiling, so the ceiling has to be said. For accelerators that everybody has it is the
data sheet's dense rate, as papers use it; for the others, and for every CPU, the best product that can be had here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bonsaigpt.torch_engine.device import Placement, synchronize
from bonsaigpt.torch_engine.workers import WorkerPool
from bonsaigpt.units import named, rate

__all__ = ["Ceiling", "ceiling", "copy_rate", "known_peak", "product_rate", "read_rate"]


@dataclass(frozen=True)
class Ceiling:
    """The most that a device can do."""

    flops: float
    """Floating-point operations a second, in matrix products."""
    why: str
    """Where the number is from."""


@dataclass(frozen=True)
class _Sheet:
    """Dense rates of a data sheet, 10^12 operations a second."""

    half: float
    """bf16 with fp32 accumulation; fp16 where there is no bf16."""
    tf32: float
    fp32: float
    """Without tensor cores."""


# Words that must all be in the name, the narrower entry first. Sources: NVIDIA's data sheets of each product, and the
# whitepapers of GA102, Ada and RTX Blackwell; their "with sparsity" figures are twice these.
_SHEETS = (
    ("GB200", _Sheet(2500, 1250, 80)),
    ("B200", _Sheet(2250, 1125, 75)),
    ("GH200", _Sheet(989, 494, 67)),
    ("H200 NVL", _Sheet(835, 418, 60)),
    ("H200", _Sheet(989, 494, 67)),
    ("H100 PCIe", _Sheet(756, 378, 51)),
    ("H100 NVL", _Sheet(835, 418, 60)),
    ("H100", _Sheet(989, 494, 67)),
    ("A100", _Sheet(312, 156, 19.5)),
    ("A10", _Sheet(125, 62.5, 31.2)),
    ("L40S", _Sheet(362, 183, 91.6)),
    ("L4", _Sheet(121, 60, 30.3)),
    ("T4", _Sheet(65, 8.1, 8.1)),
    ("V100 PCIE", _Sheet(112, 14, 14)),
    ("V100", _Sheet(125, 15.7, 15.7)),
    ("RTX 5090", _Sheet(209.5, 104.8, 104.8)),
    ("RTX 4090", _Sheet(165.2, 82.6, 82.6)),
    ("RTX 3090", _Sheet(71, 35.6, 35.6)),
)
_OTHER_CHIPS = {"D", "LAPTOP", "MIG", "TI"}
"""Words that make another chip, or a part of one, of a known name."""

_QUICK = 0.15
"""Seconds that a measurement may take when a run starts."""


def ceiling(placement: Placement, pool: WorkerPool) -> Ceiling:
    """The device's peak in the precision that it trains in: by its data sheet, or the fastest product that was measured
    in this process; the first call measures one."""
    device, dtype = placement.device, placement.dtype
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tf32 = torch.get_float32_matmul_precision() != "highest"
        if (flops := known_peak(name, dtype, tf32=tf32)) is not None:
            words = "tf32" if dtype == torch.float32 and tf32 else _words(dtype)
            return Ceiling(flops, f"data sheet of the {name}, dense {words}: {flops / 1e12:g} TFLOP/s")
    if _key(placement, pool) not in _fastest:
        product_rate(placement, pool, seconds=_QUICK)
    flops = _fastest[_key(placement, pool)]
    on = f"{pool.count} x {named(pool.threads, 'thread')}" if device.type == "cpu" else str(device)
    return Ceiling(flops, f"measured here: the fastest {_words(dtype)} matrix product on {on}, {rate(flops)}")


_Key = tuple[str, torch.dtype, int, int]
_fastest: dict[_Key, float] = {}


def _key(placement: Placement, pool: WorkerPool) -> _Key:
    return str(placement.device), placement.dtype, pool.count, pool.threads


def known_peak(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Dense operations a second by the data sheet of the device that calls itself so; None if we know of none.

    Args:
        tf32: whether products of float32 may be computed in it.
    """
    words = {word.upper() for word in re.findall(r"\w+", name)}
    if words & _OTHER_CHIPS:
        return None
    sheet = next((s for known, s in _SHEETS if set(known.upper().split()) <= words), None)
    if sheet is None:
        return None
    rate = sheet.half if dtype != torch.float32 else sheet.tf32 if tf32 else sheet.fp32
    return rate * 1e12


def product_rate(
    placement: Placement, pool: WorkerPool, shape: tuple[int, int, int] | None = None, *, seconds: float
) -> float:
    """Operations a second of (m, k) times (k, n), for about so many seconds, all workers together, each with a product
    of its own; without a shape, of the best square one."""
    if shape is not None:
        return _product_rate(placement, pool, shape, seconds)
    best, size = 0.0, 256
    while True:
        rate = _product_rate(placement, pool, (size, size, size), seconds / 4)
        best = max(best, rate)
        size *= 2
        if size > 8192 or 3 * pool.count * 2 * size**3 / rate > seconds / 2:  # the next would not fit
            return best


def _product_rate(placement: Placement, pool: WorkerPool, shape: tuple[int, int, int], seconds: float) -> float:
    m, k, n = shape

    def product() -> Callable[[], object]:
        # Not zeros: some processors multiply by them at less power, and so faster.
        left = torch.rand(m, k, device=placement.device).to(placement.dtype)
        right = torch.rand(k, n, device=placement.device).to(placement.dtype)
        out = torch.empty(m, n, device=placement.device, dtype=placement.dtype)
        return lambda: torch.mm(left, right, out=out)

    rate = 2 * m * k * n * _calls_per_second(product, placement.device, pool, seconds)
    _fastest[_key(placement, pool)] = max(rate, _fastest.get(_key(placement, pool), 0.0))
    return rate


def copy_rate(placement: Placement, pool: WorkerPool, *, seconds: float) -> float:
    """Bytes a second that memory reads and writes while all workers copy what no cache holds (STREAM's copy)."""
    size = 2**30 if placement.device.type == "cuda" else 2**27

    def copy() -> Callable[[], object]:
        source = torch.ones(size, dtype=torch.uint8, device=placement.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return 2 * size * _calls_per_second(copy, placement.device, pool, seconds)


def read_rate(placement: Placement, pool: WorkerPool, *, seconds: float) -> float:
    """Bytes a second that all workers together read while each sums what no cache holds."""
    size = 2**30 if placement.device.type == "cuda" else 2**27

    def read() -> Callable[[], object]:
        numbers = torch.ones(size // 4, device=placement.device)
        return numbers.sum

    return size * _calls_per_second(read, placement.device, pool, seconds)


def _calls_per_second(
    make: Callable[[], Callable[[], object]], device: torch.device, pool: WorkerPool, seconds: float
) -> float:
    """How often the workers together can make a call, by the fastest one of each: others who use the machine make a
    call slower and never faster. The median came out at half of that where the cores were busy."""
    calls = [make() for _ in range(pool.count)]
    start = time.perf_counter()

    def measure(call: Callable[[], object]) -> float:
        call()
        synchronize(device)
        times: list[float] = []
        repeats = 1
        while len(times) < 3 or time.perf_counter() < start + seconds:
            begun = time.perf_counter()
            for _ in range(repeats):
                call()
            synchronize(device)
            times.append((time.perf_counter() - begun) / repeats)
            if device.type != "cpu":  # blocks of a millisecond, or the wait for the device would be in the time
                repeats = max(1, min(1000, int(1e-3 / times[-1])))
        return 1.0 / min(times)

    with torch.no_grad():
        return sum(pool.map(measure, calls))


def _words(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, str(dtype))

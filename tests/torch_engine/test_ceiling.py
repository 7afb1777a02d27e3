"""Data sheets are found by the names that devices have, and what has none is measured."""

from __future__ import annotations

import math

import pytest
import torch

from bonsaigpt.torch_engine import ceiling as module
from bonsaigpt.torch_engine.ceiling import ceiling, copy_rate, known_peak, product_rate
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.workers import WorkerPool

CPU = Placement(torch.device("cpu"), torch.float32, "")


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA H100 80GB HBM3", 989, 494, 67),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H200", 989, 494, 67),
        ("NVIDIA GH200 480GB", 989, 494, 67),
        ("NVIDIA B200", 2250, 1125, 75),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA A10", 125, 62.5, 31.2),
        ("Tesla T4", 65, 8.1, 8.1),
        ("Tesla V100-SXM2-16GB", 125, 15.7, 15.7),
        ("Tesla V100-PCIE-32GB", 112, 14, 14),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA GeForce RTX 5090", 209.5, 104.8, 104.8),
    ],
)
def test_dense_peaks_by_name(name: str, bf16: float, tf32: float, fp32: float) -> None:
    assert known_peak(name, torch.bfloat16) == bf16 * 1e12
    assert known_peak(name, torch.float16) == bf16 * 1e12
    assert known_peak(name, torch.float32, tf32=True) == tf32 * 1e12
    assert known_peak(name, torch.float32) == fp32 * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",  # another chip than the A10
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA GeForce GTX 1080",
        "AMD Instinct MI300X",
    ],
)
def test_a_neighbour_of_a_known_device_is_not_taken_for_it(name: str) -> None:
    assert known_peak(name, torch.bfloat16) is None


def test_a_cpu_is_measured_once_and_the_fastest_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUICK", 0.01)
    monkeypatch.setattr(module, "_fastest", {})
    pool = WorkerPool(2, threads=1)
    first = ceiling(CPU, pool)
    assert 1e8 < first.flops < 1e14
    assert "measured here" in first.why
    assert "fp32" in first.why
    assert "2 x 1 thread," in first.why
    assert ceiling(CPU, pool) == first
    [key] = module._fastest
    monkeypatch.setattr(module, "_calls_per_second", lambda *_: 1e9)  # a product that was faster, in whatever shape
    product_rate(CPU, pool, (2, 3, 4), seconds=0.0)
    assert ceiling(CPU, pool).flops == module._fastest[key] == max(first.flops, 2 * 2 * 3 * 4 * 1e9)
    product_rate(CPU, pool, (1, 1, 1), seconds=0.0)
    assert ceiling(CPU, pool).flops == module._fastest[key]
    assert ceiling(CPU, WorkerPool(1, threads=1)).flops != module._fastest[key]


def test_the_run_says_which_ceiling_it_had() -> None:
    engine = TorchEngine(device="cpu")
    assert engine.describe()["ceiling"] == ceiling(engine.placement, engine.pool).why
    assert engine.peak_flops() == ceiling(engine.placement, engine.pool).flops


def test_rates_are_of_the_work_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker makes one call in a millisecond of its own clock; so the rate is the work of two a millisecond."""
    asked: list[tuple[int, ...]] = []

    def clock() -> float:
        clock.now += 1e-3
        return clock.now

    clock.now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", clock)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: asked.append((*a.shape, *b.shape)))
    assert product_rate(CPU, WorkerPool(), (3, 4, 5), seconds=0.01) == pytest.approx(2 * 3 * 4 * 5 / 1e-3)
    assert set(asked) == {(3, 4, 4, 5)}


def test_copying_reads_and_writes() -> None:
    rate = copy_rate(CPU, WorkerPool(2, threads=1), seconds=0.01)
    assert math.isfinite(rate)
    assert rate > 1e8

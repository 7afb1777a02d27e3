"""The page of a profile: every figure from the profile, nothing from outside, whatever names it holds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bonsaigpt.measure.anatomy import Anatomy, Operator
from bonsaigpt.measure.profile import MemoryPoint, Profile
from bonsaigpt.measure.roofline import Machine, ProductFigures, Products
from bonsaigpt.report.profile import part_names, short_name, write_profile
from tests.report.test_report import Elements, outside

SCRIPT = "<script>alert('&')</script>"

HOST = {
    "data": {"data": 0.002},
    "forward": {"matrix products": 0.010, "elementwise": 0.002, "Python": 0.004},
    "backward": {"matrix products": 0.020, "other": 0.001},
    "": {"waiting": 0.0003, "unaccounted": 0.0007},
}
PROFILE = Profile(
    environment={"device": "cpu", "ceiling": f"measured {SCRIPT}", "compile": None},
    shape=(4, 32),
    steps=5,
    at=100,
    windows=(0.017, 0.016, 0.019, 0.018),
    flops={"attn.c_attn": 3_000_000, "attention scores": 500_000},
    peak_flops=1e9,
    machine=Machine(flops=1.25e9, bandwidth=1e10),
    anatomy=Anatomy(
        wall=0.02,
        threads=2,
        host=HOST,
        device=None,
        operators=(
            Operator(name="aten::mm", group="matrix products", calls=12, host=0.03, device=0.0),
            Operator(name=f"aten::{SCRIPT}", group="other", calls=1, host=0.001, device=0.0),
            Operator(
                name="autograd::engine::evaluate_function: MmBackward0", group="other", calls=2, host=5e-4, device=0.0
            ),
        ),
        products=(),
    ),
    products=(
        ProductFigures(
            products=Products(
                kinds=("attn.c_attn",), sides=(96, 32), count=2, tokens=128, flops=3_000_000, bytes=100_000
            ),
            bound=0.0024,
            alone=0.003,
            seconds=0.015,
        ),
        ProductFigures(
            products=Products(
                kinds=("attention scores",), sides=None, count=2, tokens=128, flops=500_000, bytes=50_000
            ),
            bound=0.0004,
            alone=None,
            seconds=None,
        ),
    ),
    memory=(
        MemoryPoint(seconds=0.0, bytes=2**20, part="data"),
        MemoryPoint(seconds=0.01, bytes=3 * 2**20, part="forward"),
        MemoryPoint(seconds=0.02, bytes=2**20, part="backward"),
    ),
)


def page(tmp_path: Path, profile: Profile = PROFILE, *, top: int = 32) -> str:
    path = tmp_path / "profile.html"
    command = ["bonsai", "profile", "x", "--about", SCRIPT]
    assert write_profile(profile, path, name="oak", about=SCRIPT, command=command, top=top) == path
    return path.read_text(encoding="utf-8")


def test_the_page_says_what_the_profile_holds(tmp_path: Path) -> None:
    elements = Elements(page(tmp_path))
    said = " ".join(elements.text.split())
    assert "5 steps of 4 × 32 tokens recorded, from step 100 on · cpu · 2 threads at work" in said
    assert "A step 17.5 ms 16.0 to 19.0, without the profiler" in said
    assert "Tokens a second 7,314 128 a step" in said
    assert "MFU 20.0% 200 MFLOP/s of 1 GFLOP/s" in said
    assert "Of the roofline 16.0% its products need 2.80 ms at least" in said
    assert "Accounted for 98.2%" in said  # 0.7 of 40 ms are not
    assert "In operators 87.5%" in said
    assert "Peak memory 5 MiB of tensors, 2 workers at once" in said  # 1 for all, and 2 for each
    assert "matrix products 15.0 75.0%" in said  # 30 ms of two threads
    assert "forward 8.00 40.0%" in said
    assert "attn.c_attn 2 × 96 × 32 0.003 30 2.40 3.00 15.0" in said
    assert "attention 0.0005 10 0.40 – –" in said
    assert "autograd: MmBackward0" in said
    assert "On the device" not in said
    assert elements.tags.count("svg") == 1
    assert elements.tags.count("b") == 3  # ticks: two for the matrices, one for attention


def test_nothing_on_the_page_runs_or_comes_from_outside(tmp_path: Path) -> None:
    written = page(tmp_path)
    assert "script" not in Elements(written).tags
    assert not outside(written)
    assert page(tmp_path) == written


def test_bars_are_as_long_as_their_times(tmp_path: Path) -> None:
    written = page(tmp_path)
    widths = [float(w) for w in re.findall(r"width: ([\d.]+)%", written)]
    assert max(widths) == 100
    forward = re.search(r">forward</th><td class=\"bar\"><div>(.*?)</div>", written)
    assert forward is not None
    lengths = [float(w) for w in re.findall(r"width: ([\d.]+)%", forward[1])]
    assert lengths == pytest.approx([100 * 10 / 21, 100 * 2 / 21, 100 * 4 / 21], abs=1e-2)


def test_a_device_has_tables_of_its_own(tmp_path: Path) -> None:
    device = {"forward": {"matrix products": 0.015}, "": {"waiting": 0.005}}
    anatomy = replace(PROFILE.anatomy, threads=1, device=device)
    said = " ".join(Elements(page(tmp_path, replace(PROFILE, anatomy=anatomy))).text.split())
    assert said.count("On the device") == 2
    assert "By time on the device" in said
    assert "waiting 5.00 25.0%" in said


def test_as_many_operators_as_asked_for(tmp_path: Path) -> None:
    assert "MmBackward0" not in page(tmp_path, top=2)
    assert "The 2 longest operators" in page(tmp_path, top=2)


def test_a_profile_without_memory_has_no_curve(tmp_path: Path) -> None:
    assert "Memory over a step" not in page(tmp_path, replace(PROFILE, memory=()))


def test_small_words() -> None:
    assert part_names({"": 1.0, "backward": 1.0, "data": 1.0}) == ["data", "backward", ""]
    assert short_name("## Call CompiledFxGraph fbrtrwj4k2o7 ##") == "CompiledFxGraph fbrtrw"

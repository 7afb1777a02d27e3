"""Number formats that were left open: decided by measurement, recorded, and followed by the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.torch_engine import device as device_module
from bonsaigpt.torch_engine import formats
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.formats import decide_matrices, decide_precision
from bonsaigpt.torch_engine.muon import orthogonalize
from tests.torch_engine.test_step import batch

CPU = torch.device("cpu")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bf16 instructions."""
    monkeypatch.setattr(formats, "bf16_native", lambda device: (True, "has them"))


def config(precision: str = "auto", *, steps: int = 10_000, matrices: str = "auto") -> RunConfig:
    """A run of 10,000 steps with Muon."""
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
    settings = {"model": model, "train": {"steps": steps, "precision": precision, "batch_size": 8, "compile": "off"}}
    return validate(settings | {"optim": {"matrices": {"kind": "muon", "precision": matrices}}}, origin="t")


def measured(times: dict[str, float]) -> Any:
    """A clock that knows each format's seconds a step."""
    return lambda tried: times[tried.train.precision]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("times", "steps", "expected"),
    [
        ({"fp32": 1.0, "bf16": 0.6}, 10_000, "bf16"),
        ({"fp32": 1.0, "bf16": 0.9}, 10_000, "fp32"),  # the casts eat most of it
        ({"fp32": 1.0, "bf16": 0.6}, 100, "fp32"),  # too short to bother
    ],
)
def test_bf16_is_taken_by_long_runs_where_it_measures_faster(
    times: dict[str, float], steps: int, expected: str
) -> None:
    precision, why = decide_precision(config(steps=steps), CPU, measured(times))
    assert precision == expected
    assert why.startswith(expected)


def test_without_instructions_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "bf16_native", lambda device: (False, "no instructions"))
    assert decide_precision(config(), CPU, measured({})) == ("fp32", "fp32: no instructions")
    assert decide_matrices(config(), CPU) == ("fp32", "no instructions")


@pytest.mark.usefixtures("native")
def test_an_order_is_followed() -> None:
    assert decide_precision(config("fp32"), CPU, measured({}))[0] == "fp32"
    assert decide_matrices(config("fp32"), CPU)[0] == "fp32"
    assert decide_matrices(config(), CPU)[0] == "bf16"
    assert decide_matrices(config("fp32", matrices="bf16"), CPU)[0] == "bf16"


def test_the_engine_computes_in_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "bf16_native", lambda device: (True, "has them"))  # emulated, it is as exact
    engine, run = TorchEngine(device="cpu"), config("bf16")
    engine.init(config("auto"))
    assert engine.placement.dtype == torch.float32
    state = engine.init(run)
    assert engine.placement.dtype == torch.bfloat16
    assert "as decided for the run" in engine.placement.why  # nobody has asked for it
    rounded = engine.step(state, batch(), config=run, share=0.0, step=0).host()["loss"]
    exact = TorchEngine(device="cpu").step(state, batch(), config=run, share=0.0, step=0).host()["loss"]
    assert 0 < abs(rounded - exact) < 2.0**-7 * exact  # bf16 keeps 8 bits


def test_iterations_in_bf16_give_the_same_directions() -> None:
    stack = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(1))
    exact, rounded = orthogonalize(stack, 5), orthogonalize(stack, 5, torch.bfloat16)
    assert rounded.dtype == torch.float32
    cosine = torch.cosine_similarity(exact.flatten(1), rounded.flatten(1))
    # A rounding turns a matrix by 2^-9 at most, and small singular values are blown up by 8.3 * 4.1 before they settle:
    # 2^-9 * 34 is an angle of 0.07, whose cosine is 0.9978; 0.99 leaves room for five iterations of it.
    assert cosine.min() > 0.99
    assert not torch.equal(exact, rounded)  # negative control: it did compute in another format
    # Nothing grows: rounding a matrix of 16 by 32 adds at most 2^-9 (4 + 5.7) to a singular value.
    assert torch.linalg.svdvals(rounded).max() < torch.linalg.svdvals(exact).max() + 2.0**-9 * 9.7


def test_the_optimizer_s_iterations_follow_the_setting() -> None:
    moved = []
    for precision in ("fp32", "bf16"):
        run = config("fp32", matrices=precision)
        engine = TorchEngine(device="cpu", workers=1)
        state = engine.init(run)
        name = "transformer.h.0.mlp.c_fc.weight"
        before = engine.arrays(state)[0][name]
        engine.step(state, batch(), config=run, share=1.0, step=0)
        moved.append((engine.arrays(state)[0][name] - before).flatten())
    one, other = moved
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
    assert not np.array_equal(one, other)

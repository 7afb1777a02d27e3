"""The guard on the device, the average of the weights, learning-rate groups and muP."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bonsaigpt.config import validate
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.guard import Guard
from tests.torch_engine.test_step import batch, config

ENGINE = TorchEngine(device="cpu", workers=2)
CPU = torch.device("cpu")


def judge(guard: Guard, norm: float, loss: float = 1.0) -> bool:
    """One verdict."""
    return bool(guard.judge(torch.tensor(norm), torch.tensor(loss)))


def quiet(guard: Guard, steps: int = 80) -> None:
    """Norms around one, as a training has them."""
    for norm in np.exp(np.random.default_rng(0).normal(0, 0.3, steps)):
        assert judge(guard, float(norm))


def test_what_is_not_finite_is_skipped_from_the_first_step_on() -> None:
    guard = Guard(spike=6.0, device=CPU)
    assert not judge(guard, float("nan"))
    assert not judge(guard, 1.0, float("inf"))
    assert judge(guard, 1.0)
    assert (guard.skipped.item(), guard.in_a_row.item()) == (2, 0)


def test_a_spike_is_skipped_and_does_not_move_the_statistics() -> None:
    guard = Guard(spike=6.0, device=CPU)
    assert judge(guard, 1e6)  # nothing is known yet
    guard = Guard(spike=6.0, device=CPU)
    quiet(guard)
    mean = guard.mean.item()
    assert not judge(guard, 100.0)
    assert not judge(guard, 100.0)
    assert guard.in_a_row.item() == 2
    assert guard.mean.item() == mean
    assert judge(guard, 5.0)  # large, but not out of proportion
    off = Guard(spike=0.0, device=CPU)
    quiet(off)
    assert judge(off, 100.0)


def test_the_loss_scale_falls_at_an_overflow_and_grows_after_a_quiet_stretch() -> None:
    guard = Guard(spike=0.0, device=CPU, loss_scaling=True)
    judge(guard, float("inf"))
    assert guard.scale.item() == 2.0**15
    for _ in range(2000):
        judge(guard, 1.0)
    assert guard.scale.item() == 2.0**16
    assert guard.quiet.item() == 0


def test_after_so_many_skips_in_a_row_nothing_is_taken_any_more() -> None:
    """Nobody need look at once: good steps that follow neither move the weights nor hide what happened."""
    guard = Guard(spike=0.0, max_skips=3, device=CPU)
    for norm, taken in ((math.nan, False), (math.nan, False), (1.0, True), *[(math.nan, False)] * 3):
        assert judge(guard, norm) == taken
    assert guard.in_a_row.item() == 3
    assert not judge(guard, 1.0)
    assert not judge(guard, math.nan)
    assert guard.in_a_row.item() == 3
    again = Guard(spike=0.0, max_skips=3, device=CPU)
    again.load(guard.arrays())
    assert not judge(again, 1.0)


def test_while_the_loss_scale_falls_an_overflow_is_no_trouble() -> None:
    guard = Guard(spike=0.0, max_skips=5, device=CPU, loss_scaling=True)
    for _ in range(16):
        assert not judge(guard, math.inf)
    assert (guard.scale.item(), guard.in_a_row.item()) == (1.0, 0.0)
    assert judge(guard, 1.0)
    for _ in range(5):  # a scale of one mends nothing
        judge(guard, math.inf)
    assert guard.in_a_row.item() == 5
    assert not judge(guard, 1.0)


@pytest.mark.parametrize(("matrices", "ema"), [("adamw", 0.0), ("muon", 0.0), ("adamw", 0.9)])
def test_a_skipped_step_leaves_no_trace(matrices: str, ema: float) -> None:
    """A gradient of NaN in the middle: weights, average and moments are as if that batch had not been there."""
    run = config(optim={"matrices": {"kind": matrices}, "ema": ema})
    with_nan, without = ENGINE.init(run), ENGINE.init(run)
    for step in range(6):
        if step == 3:
            parameter = with_nan.layout.learners[1].model.transformer.wte.weight
            handle = parameter.register_hook(lambda grad: grad * float("nan"))
            metrics = ENGINE.step(with_nan, batch(seed=99), config=run, share=1.0, step=step).host()
            handle.remove()
            assert metrics["skipped"] == metrics["skipped_in_a_row"] == 1
        for state in (with_nan, without):
            ENGINE.step(state, batch(seed=step), config=run, share=1.0, step=step)
    for one, other in zip(ENGINE.arrays(with_nan), ENGINE.arrays(without), strict=True):
        for name in one:
            if name != "guard":
                assert np.array_equal(one[name], other[name]), name


def test_the_average_of_the_weights_by_hand() -> None:
    run = config(optim={"ema": 0.8, "lr": 0.01})
    state = ENGINE.init(run)
    average = {n: p.detach().clone() for n, p in state.model.named_parameters()}
    for step in range(4):
        ENGINE.step(state, batch(seed=step), config=run, share=1.0, step=step)
        average = {n: 0.8 * average[n] + 0.2 * p.detach() for n, p in state.model.named_parameters()}
    saved = ENGINE.arrays(state)[0]
    for name, value in average.items():
        np.testing.assert_allclose(saved[name], value.numpy(), rtol=1e-5, atol=1e-7)
    assert not np.allclose(saved["transformer.wte.weight"], state.model.transformer.wte.weight.detach().numpy())


def test_learning_rates_by_name() -> None:
    """At rate zero a parameter stays; the last glob that matches wins."""
    scales = {"*": 1.0, "transformer.h.0.*": 0.0, "transformer.h.0.mlp.*": 1.0}
    run = config(optim={"lr_scale": scales})
    state = ENGINE.init(run)
    before = ENGINE.arrays(state)[0]
    ENGINE.step(state, batch(), config=run, share=1.0, step=0)
    moved = {n for n, value in ENGINE.arrays(state)[0].items() if not np.array_equal(value, before[n])}
    assert "transformer.h.0.attn.c_attn.weight" not in moved
    assert {"transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight"} <= moved


def hidden_change(width: int, mup_base: int | None) -> float:
    """How far ten steps move the last hidden state, root mean square (the coordinate check of Yang et al. 2022)."""
    run = validate(
        {
            "model": {
                "n_layer": 2,
                "n_head": width // 16,
                "n_embd": width,
                "block_size": 8,
                "vocab_size": 11,
                "mup_base": mup_base,
                "residual_init": "zero",
            },
            "train": {"batch_size": 8},
            "optim": {"lr": 0.01, "weight_decay": 0.0, "schedule": {"kind": "constant"}},
        },
        origin="t",
    )
    state = ENGINE.init(run)
    tokens = torch.from_numpy(batch().tokens_BT)

    def branches() -> torch.Tensor:
        x = state.model.transformer.wte(tokens)
        return state.model.transformer.h[1].mlp.c_fc(x / x.std())

    before = branches().detach()
    for step in range(10):
        ENGINE.step(state, batch(seed=step), config=run, share=1.0, step=step)
    return (branches().detach() - before).square().mean().sqrt().item()


def test_under_mup_a_wider_model_moves_as_far() -> None:
    narrow, wide = hidden_change(32, 32), hidden_change(256, 32)
    assert wide / narrow == pytest.approx(1.0, abs=0.6)
    # Negative control: under the standard parametrisation the change grows with the width.
    assert hidden_change(256, None) / hidden_change(32, None) > 2.5

"""Muon: orthogonal updates, each stacked map by itself, and its rates."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch

from bonsaigpt.config import MuonMatrices, RunConfig, validate
from bonsaigpt.polar import COEFFICIENTS
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.fsdp import Sharded
from bonsaigpt.torch_engine.muon import Matrix, Muon, _compose, orthogonalize
from bonsaigpt.torch_engine.sharded_muon import ShardedMuon
from bonsaigpt.torch_engine.workers import WorkerPool
from tests.torch_engine.test_step import batch

ENGINE = TorchEngine(device="cpu", workers=2)


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (8, 32), (32, 8)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    # Known singular values, the smallest a fiftieth of the largest.
    u, _, vh = torch.linalg.svd(stack, full_matrices=False)
    values = torch.logspace(0, math.log10(0.02), u.shape[-1])
    stack = u @ torch.diag_embed(values.expand(3, -1)) @ vh
    flat = u @ vh
    out = orthogonalize(stack, 5)
    s = torch.linalg.svdvals(out)
    assert s.min() > 0.6
    assert s.max() < 1.25
    cosine = (out * flat).sum((1, 2)) / out.norm(dim=(1, 2)) / flat.norm(dim=(1, 2))
    assert cosine.min() > 0.97
    # Negative control: without iterations it is only scaled.
    assert torch.linalg.svdvals(orthogonalize(stack, 1)).min() < 0.3


@pytest.mark.parametrize("iterations", [1, 4, 7])
def test_the_small_side_is_iterated_as_the_whole_matrix_would_be(iterations: int) -> None:
    """The Gram form against X <- a X + b (X X^T) X + c (X X^T)^2 X, in float64."""
    x = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(2))
    direct = x.double() / (x.double().norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    slopes = 1.0
    for a, b, c in COEFFICIENTS[:iterations]:
        gram = direct @ direct.mT
        direct = a * direct + (b * gram + c * gram @ gram) @ direct
        slopes *= a
    # An error of 2^-24 grows by at most the slope at zero, the steepest, each time.
    torch.testing.assert_close(orthogonalize(x, iterations).double(), direct, rtol=0, atol=slopes * 2.0**-22)
    # Negative control: two iterations give another matrix.
    assert (orthogonalize(x, 2).double() - direct).abs().max() > 0.01


def test_a_matrix_of_few_directions_stays_finite() -> None:
    """Rounding makes zeros of A = X X^T a little negative, which the small side alone would blow up in the end."""
    left, right = (torch.randn(1, *shape, generator=torch.Generator().manual_seed(4)) for shape in ((16, 3), (3, 64)))
    assert torch.linalg.svdvals(orthogonalize(left @ right, 10)).max() < 1.01
    # Negative control: all ten at once do blow up.
    x = left @ right / ((left @ right).norm() * 1.01)
    assert not torch.linalg.svdvals(_compose([*COEFFICIENTS, *COEFFICIENTS[-2:]], x).nan_to_num(9.0)).max() < 1.01


def test_the_quintics_are_the_best_for_what_those_before_leave() -> None:
    """Amsel et al. 2025, theorem 3.1: on [low, high] the error from 1 swings to both sides, and is largest at the ends
    and the two bends between. Where low is under a fortieth of high the paper plans for that instead."""
    low, high = 1e-3, 1.0
    for safe in COEFFICIENTS[:6]:
        a, b, c = (value * 1.01 ** (2 * i + 1) for i, value in enumerate(safe))

        def quintic(x: float, a: float = a, b: float = b, c: float = c) -> float:
            return a * x + b * x**3 + c * x**5

        bends = np.sqrt(np.roots([5 * c, 3 * b, a]).real)
        planned = max(low, 0.02407327424182761 * high)
        values = [quintic(x) for x in (planned, float(bends.max()), float(bends.min()), high)]
        lowest, highest = quintic(low), quintic(float(bends.min()))
        # Scaled by a common factor, so that the lowest and the highest value average one.
        middle = (values[0] + values[2]) / 2
        swing = [value / middle - 1.0 for value in values]
        assert swing[2] > 0
        np.testing.assert_allclose(swing, [-swing[2], -swing[2], swing[2], swing[2]], atol=2e-4)
        assert (lowest + highest) / 2 == pytest.approx(1.0, abs=2e-4)
        low, high = lowest, highest
    assert low > 0.99


def test_momentum_rate_and_decay_by_hand() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 12))
    before = weight.detach().clone()
    config = MuonMatrices(lr=0.1, momentum=0.9, weight_decay=0.5, iterations=5)
    muon = Muon([Matrix("w", weight, 0, 4, 2.0)], config, WorkerPool())
    gradients = [torch.randn(4, 12), torch.randn(4, 12)]
    momentum, expected = torch.zeros(4, 12), before.clone()
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * momentum)[None], 5)[0]
        expected = expected * (1 - 0.1 * 2.0 * 0.25 * 0.5) - 0.1 * 2.0 * 0.25 * update
        weight.grad = gradient.clone()
        muon.step(0.25, torch.tensor(1.0))
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)
    # A skipped step changes neither weight nor momentum, NaN or not.
    weight.grad = torch.full((4, 12), float("nan"))
    kept, held = weight.detach().clone(), muon.arrays()["w"].clone()
    muon.step(0.25, torch.tensor(0.0))
    assert torch.equal(kept, weight.detach())
    assert torch.equal(held, muon.arrays()["w"])


class OneProcess:
    """Shards that are whole: what ``Sharded`` is where there is one process."""

    def whole(self, name: str, local: torch.Tensor) -> torch.Tensor:
        return local

    own = whole


def test_over_shards_it_is_the_same_update_and_a_skipped_one_leaves_no_trace() -> None:
    config = MuonMatrices(lr=0.1, momentum=0.9, weight_decay=0.5, iterations=5)
    start = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    one, other = ([Matrix("w", w, 0, 4, 2.0), Matrix("w", w, 4, 12, 2.0)] for w in weights)
    whole, sharded = Muon(one, config, WorkerPool()), ShardedMuon(other, config, cast("Sharded", OneProcess()))
    for keep, value in ((1.0, 1.0), (0.0, math.nan), (0.0, math.inf), (1.0, -2.0)):
        before = [weight.detach().clone() for weight in weights]
        gradient = torch.randn(12, 4, generator=torch.Generator().manual_seed(4)) * value
        for weight, muon in zip(weights, (whole, sharded), strict=True):
            weight.grad = gradient.clone()
            muon.step(0.25, torch.tensor(keep))
        # Of one batch or of two, the products may be summed in another order.
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sharded.arrays()["w"], whole.arrays()["w"])
        changed = [not torch.equal(b, w.detach()) for b, w in zip(before, weights, strict=True)]
        assert changed == [keep > 0] * 2


def test_tall_maps_move_further_so_that_activations_move_alike() -> None:
    """Bernstein 2025: the spectral norm of an update goes as sqrt(out / in)."""
    sizes = {}
    for shape in ((8, 8), (32, 8), (8, 32)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([Matrix("w", weight, 0, shape[0], 1.0)], MuonMatrices(lr=1.0), WorkerPool()).step(1.0, torch.tensor(1.0))
        sizes[shape] = torch.linalg.svdvals(weight.detach()).mean().item()
    assert sizes[32, 8] / sizes[8, 8] == pytest.approx(2.0, rel=0.2)
    assert sizes[8, 32] / sizes[8, 8] == pytest.approx(1.0, rel=0.2)


def run_config(**optim: object) -> RunConfig:
    """A tiny run with Muon."""
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11, "attention": {"n_kv_head": 1}}
    settings = {"matrices": {"kind": "muon"}} | optim
    return validate({"model": model, "train": {"batch_size": 8}, "optim": settings}, origin="t")


def test_queries_keys_and_values_are_orthogonalised_apart() -> None:
    """Each of the three maps in c_attn moves by an orthogonal matrix of its own; the stack of all three would not."""
    config = run_config(lr=1e-9, grad_clip=0.0, weight_decay=0.0)
    state = ENGINE.init(config)
    before = state.model.get_parameter("transformer.h.0.attn.c_attn.weight").detach().clone()
    ENGINE.step(state, batch(), config=config, share=1.0, step=0)
    moved = (state.model.get_parameter("transformer.h.0.attn.c_attn.weight").detach() - before) / 0.02
    assert moved.shape == (32, 16)
    for first, last in ((0, 16), (16, 24), (24, 32)):
        values = torch.linalg.svdvals(moved[first:last])
        assert values.max() < 1.3
        assert values.median() > 0.6
    assert torch.linalg.svdvals(moved).max() > 1.3


def test_the_workers_share_of_matrices_changes_nothing() -> None:
    config = run_config()
    alone = TorchEngine(device="cpu", workers=1)
    states = [engine.init(config) for engine in (alone, ENGINE)]
    for engine, state in zip((alone, ENGINE), states, strict=True):
        for step in range(3):
            engine.step(state, batch(seed=step), config=config, share=1.0, step=step)
    arrays = [ENGINE.arrays(state) for state in states]
    for name in arrays[0][1]:
        np.testing.assert_allclose(arrays[0][1][name], arrays[1][1][name], rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_restored_muon_continues_bit_for_bit(ema: float) -> None:
    config = run_config(ema=ema)
    straight, broken = ENGINE.init(config), ENGINE.init(config)
    for step in range(6):
        ENGINE.step(straight, batch(seed=step), config=config, share=1.0, step=step)
    for step in range(3):
        ENGINE.step(broken, batch(seed=step), config=config, share=1.0, step=step)
    restored = ENGINE.restore(config, *ENGINE.arrays(broken))
    for step in range(3, 6):
        ENGINE.step(restored, batch(seed=step), config=config, share=1.0, step=step)
    one, other = ENGINE.arrays(straight), ENGINE.arrays(restored)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    # Negative control: without the momenta it is another run.
    name = "transformer.wte.weight"
    forgetful = ENGINE.restore(config, ENGINE.arrays(broken)[0], {})
    ENGINE.step(forgetful, batch(seed=3), config=config, share=1.0, step=3)
    assert not np.array_equal(ENGINE.arrays(forgetful)[0][name], one[0][name])

"""The step, the optimizer and the device choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.errors import DeviceError
from bonsaigpt.spec import parameters
from bonsaigpt.torch_engine import device as device_module
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import cross_entropy_sum


def config(**train: object) -> RunConfig:
    """A tiny run."""
    model = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
    optim = train.pop("optim", {})
    dropout = train.pop("dropout", 0.0)
    data = {"model": model | {"dropout": dropout}, "train": {"batch_size": 8} | train, "optim": optim}
    return validate(data, origin="test")


def batch(rows: int = 8, seed: int = 0) -> Batch:
    """Random tokens, a third of the targets ignored."""
    draws = np.random.default_rng(seed)
    targets = draws.integers(0, 11, (rows, 8))
    targets[draws.random((rows, 8)) < 0.3] = IGNORE
    return Batch(tokens_BT=draws.integers(0, 11, (rows, 8)), targets_BT=targets, count=int((targets != IGNORE).sum()))


ENGINE = TorchEngine(device="cpu")


def test_loss_is_the_mean_over_the_targets_that_count() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[1, IGNORE, 4], [IGNORE, 0, 2]])
    by_hand = -sum(logits[b, t].log_softmax(-1)[targets[b, t]] for b, t in [(0, 0), (0, 2), (1, 1), (1, 2)])
    assert cross_entropy_sum(logits, targets).item() == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_with_unequal_masks_give_the_whole_batch_gradient(parts: int) -> None:
    """The sum over micro-batches is divided by the count of the whole batch: exact, up to the order of additions.

    float32 sums of at most 64 terms in another order differ by at most 64 * 2^-24 = 4e-6 of their size; AdamW's first
    step divides by |g|, so gradients are compared, through SGD-like plain differences of one step with eps = 1e6.
    """
    optim = {"eps": 1e6, "lr": 1e6, "weight_decay": 0.0, "grad_clip": 0.0, "beta1": 0.0}
    whole, cut = config(optim=optim), config(optim=optim, micro_batch=8 // parts)
    a, b = ENGINE.init(whole), ENGINE.init(cut)
    loss_a = ENGINE.step(a, batch(), config=whole, share=1.0, step=0).host()
    loss_b = ENGINE.step(b, batch(), config=cut, share=1.0, step=0).host()
    assert loss_a["loss"] == pytest.approx(loss_b["loss"], rel=1e-6)
    assert loss_a["grad_norm"] == pytest.approx(loss_b["grad_norm"], rel=1e-5)
    for (name, x), (_, y) in zip(ENGINE.arrays(a)[0].items(), ENGINE.arrays(b)[0].items(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_step_equals_adamw_by_hand() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64 from the same gradient; decay on matrices only."""
    run = config(optim={"lr": 0.01, "weight_decay": 0.1, "grad_clip": 0.5})
    state = ENGINE.init(run)
    before = {n: p.detach().double().clone() for n, p in state.model.named_parameters()}
    logits = state.model(torch.from_numpy(batch().tokens_BT))
    (cross_entropy_sum(logits, torch.from_numpy(batch().targets_BT)) / batch().count).backward()
    gradient = {n: p.grad.detach().double().clone() for n, p in state.model.named_parameters()}  # type: ignore[union-attr]
    state.model.zero_grad()
    norm = torch.sqrt(sum(g.square().sum() for g in gradient.values()))  # type: ignore[arg-type]
    scale = min(1.0, 0.5 / (norm.item() + 1e-6))
    metrics = ENGINE.step(state, batch(), config=run, share=1.0, step=0).host()
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    decay = {p.name: p.decay for p in parameters(run.model)}
    for name, p in state.model.named_parameters():
        g = gradient[name] * scale
        m, v = 0.1 * g, 0.01 * g.square()
        update = (m / 0.1) / ((v / 0.01).sqrt() + 1e-8)
        expected = before[name] * (1 - 0.01 * 0.1 * decay[name]) - 0.01 * update
        # |update| <= 1 and g is known to 1e-5 of its size; where g is tiny beside eps the quotient is soft.
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=2e-5)


def test_restored_state_continues_bit_for_bit() -> None:
    run = config(dropout=0.2, optim={"lr": 1e-2})
    straight, broken = ENGINE.init(run), ENGINE.init(run)
    for step in range(6):
        ENGINE.step(straight, batch(seed=step), config=run, share=1.0, step=step)
    for step in range(3):
        ENGINE.step(broken, batch(seed=step), config=run, share=1.0, step=step)
    model, optimizer = ENGINE.arrays(broken)
    torch.manual_seed(12345)  # somebody else uses the global generator meanwhile
    torch.rand(7)
    restored = ENGINE.restore(run, model, optimizer)
    for step in range(3, 6):
        ENGINE.step(restored, batch(seed=step), config=run, share=1.0, step=step)
    for (name, x), (_, y) in zip(ENGINE.arrays(straight)[0].items(), ENGINE.arrays(restored)[0].items(), strict=True):
        assert np.array_equal(x, y), name
    # Negative control: without the moments the continuation is another one.
    fresh = ENGINE.init(run, model)
    ENGINE.step(fresh, batch(seed=3), config=run, share=1.0, step=3)
    assert not np.array_equal(
        ENGINE.arrays(fresh)[0]["transformer.wte.weight"], ENGINE.arrays(restored)[0]["transformer.wte.weight"]
    )


def test_dropout_is_a_function_of_seed_and_step_and_leaves_the_global_generator_alone() -> None:
    run = config(dropout=0.5)
    before = torch.get_rng_state()
    losses = [ENGINE.step(ENGINE.init(run), batch(), config=run, share=0.0, step=s).host()["loss"] for s in (4, 5, 4)]
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(before, torch.get_rng_state())


def test_on_this_cpu_bf16_is_never_chosen_by_itself() -> None:
    placement = choose_placement("cpu", "auto")
    assert placement.dtype == torch.float32
    assert "fp32" in placement.why


def test_bf16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "bf16_native", lambda device: (False, "no instructions"))
    with pytest.raises(DeviceError, match="would be slow here: no instructions"):
        choose_placement("cpu", "bf16")
    monkeypatch.setattr(device_module, "bf16_native", lambda device: (True, "has them"))
    assert choose_placement("cpu", "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "xla", "tpu:0"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        choose_placement(name)


def test_exact_rows_are_those_whose_every_target_is_the_first_choice() -> None:
    run = config()
    state = ENGINE.init(run)
    data = batch()
    with torch.inference_mode():
        choices = state.model(torch.from_numpy(data.tokens_BT)).argmax(-1).numpy()
    solved = choices.copy()
    solved[0, 3] = (solved[0, 3] + 1) % 11  # one row wrong at one place
    solved[1, :] = IGNORE  # nothing asked is nothing wrong
    _, right = ENGINE.evaluate(state.model, Batch(tokens_BT=data.tokens_BT, targets_BT=solved, count=56), exact=True)
    assert right == 7

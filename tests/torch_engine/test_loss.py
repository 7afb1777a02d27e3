"""The fused head against the plain one: values, gradients, and what it holds in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bonsaigpt.config import validate
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.torch_engine import loss as loss_module
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import build

TOKENS = torch.randint(0, 13, (3, 8), generator=torch.Generator().manual_seed(1))
TARGETS = TOKENS.roll(-1, dims=1).masked_fill(TOKENS == 5, IGNORE)


def learn(z_loss: float, **model: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Objective, cross-entropy and all gradients of a small model, in float64."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13}
    learner = Learner(build(validate({"model": sizes | model}, origin="t").model, seed=3).double(), z_loss=z_loss)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(10)  # logits of several nats, so that caps and partition functions matter
    objective, cross_entropy = learner(TOKENS, TARGETS)
    objective.backward()
    return objective.detach(), cross_entropy, [p.grad for p in learner.parameters() if p.grad is not None]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(
    "model",
    [{}, {"logit_softcap": 2.0}, {"vocab_multiple": 8}, {"tie_embeddings": False}, {"mup_base": 8}],
    ids=lambda m: next(iter(m), "plain"),
)
def test_fused_head_is_the_plain_one(z_loss: float, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    objective, cross_entropy, gradients = learn(z_loss, **model)
    monkeypatch.setattr(loss_module, "WHOLE", 4 * 13)  # four rows at a time, and a rest
    monkeypatch.setitem(loss_module.fused_head_loss.__kwdefaults__, "whole", 4 * 13)
    fused_objective, fused_cross_entropy, fused_gradients = learn(z_loss, **model)
    # The fused sums are float32 (2^-24 each, 24 rows); the plain ones of this float64 model are not.
    torch.testing.assert_close(fused_objective.double(), objective.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused_cross_entropy.double(), cross_entropy.double(), rtol=1e-5, atol=1e-5)
    # Softmax is float32 in both: 2^-24 of logits below 32 is 2e-6, times hidden values below 32, over 24 rows at worst.
    for one, other in zip(fused_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert (z_loss > 0) == bool(objective - cross_entropy > 1e-3)


def test_fused_head_never_holds_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear map of the fused head, by the number of logits it makes."""
    monkeypatch.setattr(loss_module, "WHOLE", 4 * 13)
    monkeypatch.setitem(loss_module.fused_head_loss.__kwdefaults__, "whole", 4 * 13)
    sizes: list[int] = []
    linear = torch.nn.functional.linear

    def recorded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(x, weight, bias)
        if out.shape[-1] == 13:
            sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    learn(0.0)
    assert sizes == [4 * 13] * 6


def test_padding_of_the_vocabulary_is_never_seen() -> None:
    """Same seed, same rows: padded and unpadded models agree in logits and loss, and the padding has no gradient."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13, "tie_embeddings": False}
    plain, padded = (
        build(validate({"model": sizes | {"vocab_multiple": m}}, origin="t").model, seed=3) for m in (1, 16)
    )
    assert padded.head_weight.shape[0] == 16
    torch.testing.assert_close(plain(TOKENS), padded(TOKENS), rtol=1e-6, atol=1e-7)
    assert padded(TOKENS).shape[-1] == 13
    objective, _ = Learner(padded)(TOKENS, TARGETS)
    objective.backward()
    assert padded.head_weight.grad is not None
    assert padded.head_weight.grad[13:].abs().max() == 0 < padded.head_weight.grad[:13].abs().max()


def test_soft_cap_bounds_the_logits() -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13, "logit_softcap": 0.5}
    model = build(validate({"model": sizes}, origin="t").model, seed=3)
    with torch.no_grad():
        model.head_weight.mul_(1000)
    assert 0.4 < model(TOKENS).abs().max() <= 0.5


def test_the_head_is_applied_to_what_counts_alone() -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 13}
    learner = Learner(build(validate({"model": sizes}, origin="t").model, seed=3).double(), z_loss=0.1)
    few = TARGETS.masked_fill(torch.arange(24).reshape(3, 8) % 5 > 0, IGNORE)
    found = []
    for asked in (None, (few.flatten() != IGNORE).nonzero()[:, 0]):
        learner.zero_grad()
        objective, cross_entropy = learner(TOKENS, few, asked_N=asked)
        objective.backward()
        found.append([objective.detach(), cross_entropy, *(p.grad.clone() for p in learner.parameters())])
    # The head's sums are float32 and over the same terms, but for zeros.
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    fewer, _ = learner(TOKENS, few, asked_N=torch.tensor([0, 5]))
    assert abs(fewer - found[0][0]) > 1.0

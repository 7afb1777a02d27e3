"""Training in one pass sees what a cache with the policy would give back, and learns through its codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.kv import one_pass
from bonsaigpt.torch_engine.kv.one_pass import OnePass
from bonsaigpt.torch_engine.kv.store import rounded
from tests.torch_engine.caching import TEXT, through
from tests.torch_engine.decoders import logits_of, model_of
from tests.torch_engine.variants import variant

ONE_PASS = [
    "full, int4",
    "window(6), k=int3(hadamard), v=int2(group=4)",
    "window(5), x=int4",
    "full, int4, keys=unrotated",
    "window(7), fp16",
    "int8; layers 0: window(3), ternary",
]


OWN_ATTENTION = [
    "gpt2",
    "rope, neighbours",
    "rope, yarn",
    "multi-query",
    "sinks",
    "sliding windows",
    "shared keys and values",
    "shared, in windows",
    "modern",
]
"""Variants whose attention is another."""


@pytest.mark.parametrize("policy", ONE_PASS)
@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_training_in_one_pass_sees_what_the_cache_gives_back(name: str, policy: str) -> None:
    """In float64, as a number on the edge between two codes may fall to either side; and the gradient of what is
    coded arrives."""
    model = model_of(name).double()
    want = through(model, policy)
    exact = logits_of(model, TEXT)
    model.through = OnePass(model.config, read_policy(policy))
    logits = model(torch.from_numpy(TEXT)[None])[0]
    assert np.abs(logits.detach().numpy() - want).max() < 1e-5
    assert np.abs(exact - want).max() > 1e-4
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.transformer.h.parameters())


def test_coding_a_query_s_own_token_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the above: the usual fake quantisation, whose diagonal is coded too."""
    model = model_of("modern").double()
    want = through(model, "full, int4")
    model.through = OnePass(model.config, read_policy("full, int4"))
    plain = one_pass.Seen
    monkeypatch.setattr(one_pass, "Seen", lambda k, v, slots, both: plain(*both, slots, both))
    with torch.inference_mode():
        assert np.abs(model(torch.from_numpy(TEXT)[None])[0].numpy() - want).max() > 1e-3


def test_the_gradient_goes_straight_through_the_codes() -> None:
    """Of sum(w * coded(x)) it is w, whatever x is coded to; and nothing moves where nothing is coded."""
    x, w = (torch.randn(2, 3, 5, 8, requires_grad=grad) for grad in (True, False))
    for policy in ("int2(hadamard)", "sign", "e4m3", "fp16"):
        form = read_policy(policy).policy.formats["k"]
        coded = rounded(x, form)
        [grad] = torch.autograd.grad((coded * w).sum(), x)
        assert torch.equal(grad, w)
        assert not torch.equal(coded, x)
    assert rounded(x, read_policy("full").policy.formats["k"]) is x


def test_documents_stay_apart_in_one_pass_too() -> None:
    model = model_of("modern").double()
    model.through = OnePass(model.config, read_policy("window(6), int4"))
    both = torch.from_numpy(TEXT)[None]
    documents = torch.tensor([[0] * 9 + [1] * 15])
    with torch.inference_mode():
        apart = torch.cat((model(both[:, :9]), model(both[:, 9:])), dim=1)
        assert (model(both, documents_BT=documents) - apart).abs().max() < 1e-9
        assert (model(both) - apart).abs().max() > 1e-2


def test_what_one_pass_cannot_know_is_refused() -> None:
    for words, why in [
        ("window(4)+h2o(8)", "h2o chooses by what was read so far"),
        ("window(4), positions=slot", "train with positions=true"),
        ("window(8), int4(residual=2)", "changes as a token grows old"),
        ("full, int2(axis=channel, group=8)", "changes as a token grows old"),
    ]:
        with pytest.raises(ConfigError, match=why):
            OnePass(variant("rope"), read_policy(words))

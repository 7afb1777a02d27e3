"""Linear attention: recurrent, chunked and parallel are one function; each form by its formula; going back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bonsaigpt.torch_engine.attention import Where
from bonsaigpt.torch_engine.linear_attention import chunked, parallel, recurrent
from bonsaigpt.torch_engine.model import build
from tests.torch_engine.decoders import logits_of, make, model_of
from tests.torch_engine.variants import variant

STATE = torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(9))


def inputs(length: int) -> list[torch.Tensor]:
    """Queries and keys as elu + 1 makes them, and values."""
    generator = torch.Generator().manual_seed(length)
    q, k = (F.elu(torch.randn(2, 3, length, 8, generator=generator)) + 1 for _ in range(2))
    return [t.requires_grad_() for t in (q, k, torch.randn(2, 3, length, 5, generator=generator))]


@pytest.mark.parametrize("length", [1, 7, 64, 100])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_the_three_forms_agree(length: int, chunk: int) -> None:
    """Results, final states and gradients, with and without a past, relative to their size: sums of 100 terms."""
    given = inputs(length)
    pairs = [
        (chunked(*given, chunk=chunk), recurrent(*given, torch.zeros_like(STATE))),
        (chunked(*given, STATE, chunk=chunk), recurrent(*given, STATE)),
    ]
    for (by_chunks, end), (by_tokens, last) in pairs:
        torch.testing.assert_close(by_chunks, by_tokens, rtol=1e-5, atol=1e-5 * by_tokens.abs().max().item())
        torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5 * last.abs().max().item())
    (by_chunks, _), (by_tokens, _) = pairs[0]
    whole = parallel(*given)
    torch.testing.assert_close(whole, by_tokens, rtol=1e-5, atol=1e-5 * whole.abs().max().item())
    gradients = [torch.autograd.grad(y.square().mean(), given) for y in (by_chunks, by_tokens, whole)]
    for one, two, three in zip(*gradients, strict=True):
        size = 1e-5 * two.abs().max().item()
        torch.testing.assert_close(one, two, rtol=1e-4, atol=size)
        torch.testing.assert_close(three, two, rtol=1e-4, atol=size)


def test_the_comparison_notices_a_past_that_is_dropped() -> None:
    given = inputs(40)
    assert (chunked(*given, STATE)[0] - chunked(*given)[0]).abs().max() > 0.1
    assert (parallel(*given)[:, :, 20:] - parallel(*(t[:, :, 20:] for t in given))).abs().max() > 0.1


@pytest.mark.parametrize("name", ["linear", "linear, layer-norm"])
def test_each_form_by_its_formula(name: str) -> None:
    """Katharopoulos et al. 2020, equation 9, token by token; and without the quotient, layer-normalised."""
    model = build(variant(name, n_layer=1, bias=False), seed=2).double()
    attention = model.transformer.h[0].attn
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    got, _ = attention(x, Where(None, None, None))
    q, k, v = ((x @ attention.c_attn.weight.T).view(6, 3, 4, 8)[:, i] for i in range(3))
    if name == "linear":
        q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
    rows = []
    for t in range(6):
        heads = []
        for head in range(4):
            weights = k[: t + 1, head] @ q[t, head]
            mixed = weights @ v[: t + 1, head]
            if name == "linear":
                heads.append(mixed / (weights.sum() + 1e-6))
            else:
                heads.append((mixed - mixed.mean()) / (mixed.var(unbiased=False) + 1e-5).sqrt())
        rows.append(torch.cat(heads))
    expected = torch.stack(rows)[None] @ attention.c_proj.weight.T
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["eager", "eager, rows together"])
def test_a_state_goes_back_to_any_length_and_rows_leave_each_other_alone(kind: str) -> None:
    model = model_of("linear, rope")
    text = np.random.default_rng(3).integers(0, 17, 24)
    want = logits_of(model, text)
    decoder = make(kind, model, rows=2)
    decoder.prefill(0, text[:9])
    for t in range(9, 13):
        decoder.step(np.array([0]), text[t : t + 1])
    decoder.prefill(1, text[:3])
    for length in (11, 5, 0):  # after the last mark, before it, and to nothing
        decoder.truncate(0, length)
        assert np.abs(decoder.verify(0, text[length:20])[-1] - want[19]).max() < 2e-5
    assert np.abs(decoder.step(np.array([1]), text[3:4])[0] - want[3]).max() < 2e-5
    assert np.abs(want[19] - want[3]).max() > 0.1  # the negative control


def test_the_state_does_not_grow() -> None:
    sizes = []
    for block in (24, 240):
        decoder = make("eager", model_of("linear", block_size=block))
        decoder.prefill(0, np.zeros(24, dtype=np.int64))
        sizes.append(decoder.bits())
    assert sizes[0] == sizes[1] == 3 * 4 * 8 * (8 + 1) * 32

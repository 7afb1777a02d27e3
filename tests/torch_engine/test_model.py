"""The model: causal, initialised, and each part by its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bonsaigpt.config import ModelConfig, RopePosition, validate
from bonsaigpt.torch_engine.elementwise import rotate
from bonsaigpt.torch_engine.model import GPT, build, load_weights, weights
from bonsaigpt.torch_engine.rope import rotation
from tests.torch_engine.variants import VARIANTS, variant


def lively(config: ModelConfig, seed: int = 0) -> GPT:
    """A model whose weights are large enough that every part matters (at 0.02 attention is nearly uniform)."""
    model = build(config, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    return model


TOKENS = torch.randint(0, 17, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_causality_by_gradient(name: str) -> None:
    """The logits at t depend on the inputs 0 .. t and on no later one."""
    model = lively(variant(name))
    table = model.transformer.wte.table
    inputs = F.embedding(TOKENS, table).detach().requires_grad_()
    model.transformer.wte.forward = lambda _: inputs  # type: ignore[method-assign]
    hidden = model.hidden(TOKENS)
    for t in (0, 7, 23):
        [gradient] = torch.autograd.grad(hidden[:, t].square().sum(), inputs, retain_graph=True)
        reach = gradient.abs().sum(dim=-1)
        assert (reach[:, t + 1 :] == 0).all(), f"position {t} sees the future"
        assert (reach[:, : t + 1] > 0).all(), f"position {t} does not see all of the past"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_initialised_and_learns(name: str) -> None:
    model = build(variant(name), seed=3)
    logits = model(TOKENS)
    assert torch.isfinite(logits).all()
    F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
    for parameter_name, p in model.named_parameters():
        assert p.grad is not None, parameter_name
        assert p.grad.abs().sum() > 0, f"{parameter_name} gets no gradient"


def test_a_fresh_model_is_nearly_uniform() -> None:
    logits = build(variant("gpt2"), seed=0)(TOKENS)
    others = (TOKENS + 1) % 17  # with a tied head a token's own logit is higher from the start
    loss = F.cross_entropy(logits.flatten(0, 1), others.flatten()).item()
    assert loss == pytest.approx(math.log(17), abs=0.05)


def test_weights_round_trip_and_are_copies() -> None:
    model = build(variant("modern"), seed=1)
    arrays = weights(model)
    again = build(variant("modern"), values=arrays)
    assert torch.equal(model(TOKENS), again(TOKENS))
    arrays["transformer.ln_f.weight"] += 1
    assert torch.equal(model(TOKENS), again(TOKENS))
    changed = build(variant("modern"), values=arrays)
    assert not torch.equal(model(TOKENS), changed(TOKENS))  # the comparison would notice


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ln_f\.weight"):
        load_weights(
            GPT(variant("gpt2")),
            [(n, p) for n, p in weights(build(variant("gpt2"), seed=1)).items() if "ln_f.w" not in n],
        )


def test_attention_equals_the_formula() -> None:
    """softmax(q k^T / sqrt(K) + mask) v by hand, with grouped queries, in float64."""
    config = variant("grouped queries")
    model = lively(config)
    attention = model.transformer.h[0].attn
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    from bonsaigpt.torch_engine.attention import Where

    got, _ = attention(x, Where(None, None, None))
    qkv = x @ attention.c_attn.weight.T
    q, k, v = qkv.split([32, 16, 16], dim=-1)
    rows = []
    for head in range(4):
        group = head // 2
        qh, kh, vh = (
            q[..., 8 * head : 8 * head + 8],
            k[..., 8 * group : 8 * group + 8],
            v[..., 8 * group : 8 * group + 8],
        )
        scores = qh @ kh.transpose(1, 2) / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
        rows.append(scores.softmax(-1) @ vh)
    expected = torch.cat(rows, dim=-1) @ attention.c_proj.weight.T
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gpt2", lambda m, x: F.gelu(x @ m.c_fc.weight.T + m.c_fc.bias) @ m.c_proj.weight.T + m.c_proj.bias),
        ("relu2", lambda m, x: (x @ m.c_fc.weight.T).clamp(min=0) ** 2 @ m.c_proj.weight.T),
        (
            "swiglu",
            lambda m, x: (
                ((x @ m.c_gate.weight.T) * torch.sigmoid(x @ m.c_gate.weight.T) * (x @ m.c_fc.weight.T))
                @ m.c_proj.weight.T
            ),
        ),
    ],
)
def test_mlps_equal_their_formulas(name: str, formula) -> None:
    mlp = lively(variant(name)).transformer.h[1].mlp
    x = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), formula(mlp, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neighbours", [False, True])
def test_rope_scores_depend_on_the_distance_alone(neighbours: bool) -> None:
    cos, sin = (t.double() for t in rotation(RopePosition(), 8, torch.arange(50)))
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        turned = (rotate(x, cos[at], sin[at], neighbours=neighbours) for x, at in ((q, i), (k, j)))
        return torch.dot(*turned).item()

    # The table is float32 (2^-24 relative, each product rounds twice): 1e-6 is a safe bound for sums of 8 terms.
    assert score(5, 3) == pytest.approx(score(40, 38), abs=1e-5)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
    assert rotate(q, cos[7], sin[7], neighbours=neighbours).norm().item() == pytest.approx(q.norm().item(), rel=1e-6)


def test_gqa_with_all_heads_is_plain_attention() -> None:
    plain, grouped = variant("no bias"), variant("no bias", attention={"n_kv_head": 4})
    values = weights(build(plain, seed=5))
    assert torch.equal(build(plain, values=values)(TOKENS), build(grouped, values=values)(TOKENS))


def test_post_norm_differs_from_pre_norm() -> None:
    values = weights(build(variant("no bias"), seed=5))
    pre, post = build(variant("no bias"), values=values), build(variant("post-norm"), values=values)
    assert not torch.allclose(pre(TOKENS), post(TOKENS))


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    config = variant("gpt2", dropout=0.5)
    model = build(config, seed=1)
    assert torch.equal(model.eval()(TOKENS), model(TOKENS))
    assert not torch.equal(model.train()(TOKENS), model(TOKENS))


def test_tied_embeddings_share_storage_and_count_once() -> None:
    tied, untied = build(variant("gpt2"), seed=1), build(variant("untied"), seed=1)
    assert tied.head_weight is tied.transformer.wte.weight
    assert untied.head_weight is not untied.transformer.wte.weight
    assert "lm_head.weight" not in weights(tied)
    assert "lm_head.weight" in weights(untied)


def test_flops_and_parameters_by_hand() -> None:
    """The small shape of nanoGPT's CPU recipe: 5.17 M FLOPs a token, 804,096 parameters."""
    from bonsaigpt.measure import flops_per_token
    from bonsaigpt.spec import parameter_count

    config = validate({"model": {"vocab_size": 65}}, origin="test").model
    matrices = 4 * (3 * 128 * 128 + 128 * 128 + 8 * 128 * 128) + 65 * 128
    assert flops_per_token(config) == 6 * matrices + 12 * 4 * 128 * 64
    assert parameter_count(config) == matrices + 64 * 128 + 9 * 128
    assert np.isclose(flops_per_token(config), 5.17e6, rtol=2e-3)

"""Each kind of attention by its formula: windows, sinks, shared keys and values, the latent, scaled positions."""

from __future__ import annotations

import math

import pytest
import torch

from bonsaigpt.config import ModelConfig, RopePosition, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import full_bits_per_token, state_bits
from bonsaigpt.torch_engine.attention import Where, attend, shares
from bonsaigpt.torch_engine.compiling import compile_module, what_is_missing
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT, build, weights
from bonsaigpt.torch_engine.rope import frequencies, temperature
from tests.torch_engine.variants import EAGER_ONLY, VARIANTS, variant

TOKENS = torch.randint(0, 17, (2, 24), generator=torch.Generator().manual_seed(1))
NEW = sorted(EAGER_ONLY - {"experts"} | {name for name in VARIANTS if "window" in name or "sinks" in name})


def lively(config: ModelConfig, seed: int = 0) -> GPT:
    """In float64, weights of size 0.3."""
    model = build(config, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    return model


@pytest.mark.parametrize("window", [1, 5, 23])
def test_a_window_is_seen_whole_and_nothing_before_it(window: int) -> None:
    model = lively(variant("no position", n_layer=1, attention={"window": window}))
    inputs = torch.randn(1, 24, 32, dtype=torch.float64, requires_grad=True)
    model.transformer.wte.forward = lambda _: inputs  # type: ignore[method-assign]
    hidden = model.hidden(TOKENS[:1])
    for t in (0, 7, 23):
        [gradient] = torch.autograd.grad(hidden[:, t].square().sum(), inputs, retain_graph=True)
        seen = gradient[0].abs().sum(dim=-1) > 0
        assert seen.nonzero().flatten().tolist() == list(range(max(0, t - window + 1), t + 1))


def test_patterns_repeat_and_long_windows_hide_nothing() -> None:
    attention = variant("no bias", attention={"window": 4, "pattern": "SSSL"}).attention
    assert attention.kind == "softmax"
    assert [attention.window_of(layer) for layer in range(6)] == [4, 4, 4, None, 4, 4]
    values = weights(build(variant("rope"), seed=5))
    whole = build(variant("rope"), values=values)(TOKENS)
    for setting, same in [({"window": 24}, True), ({"window": 23}, False), ({"window": 23, "pattern": "L"}, True)]:
        other = build(variant("rope", attention=setting), values=values)(TOKENS)
        assert torch.equal(other, whole) == same


def test_a_sink_takes_its_share_of_the_softmax() -> None:
    """By hand: exp(s_j) / (exp(sink) + sum of exp(s_i)); a sink at -inf is none."""
    config = variant("sinks", n_layer=1, attention={"sinks": True})
    model = lively(config)
    attention = model.transformer.h[0].attn
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    got, _ = attention(x, Where(None, None, None))
    q, k, v = (t.view(2, 9, 4, 8).transpose(1, 2) for t in (x @ attention.c_attn.weight.T).split(32, dim=-1))
    weights_ = (q @ k.mT / math.sqrt(8)).exp().tril()
    total = weights_.sum(-1, keepdim=True) + attention.sinks.exp()[:, None, None]
    expected = (weights_ / total @ v).transpose(1, 2).reshape(2, 9, 32) @ attention.c_proj.weight.T
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    without = torch.nn.Parameter(torch.full((4,), -torch.inf, dtype=torch.float64))
    attention.sinks = without
    bare, _ = attention(x, Where(None, None, None))
    attention.sinks = None
    torch.testing.assert_close(bare, attention(x, Where(None, None, None))[0], rtol=1e-12, atol=1e-12)
    assert (bare - got).abs().max() > 0.01  # the negative control


def test_neighbours_read_the_keys_and_values_of_the_first_of_them() -> None:
    """Layers 0 and 1 share, layer 2 is alone: the result is that of a plain model whose layer 1 is given layer 0's."""
    model = lively(variant("shared keys and values", attention={"share_kv": 2}))
    blocks = model.transformer.h
    assert [tuple(b.attn.c_attn.weight.shape) for b in blocks] == [(96, 32), (32, 32), (96, 32)]
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    _, first = blocks[0].attn(x, Where(None, None, None))
    got, second = blocks[1].attn(x, Where(None, None, None), first)
    assert second is first
    q = (x @ blocks[1].attn.c_attn.weight.T).view(1, 6, 4, 8).transpose(1, 2)
    scores = (q @ first.k_BGSK.mT / math.sqrt(8)).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ first.v_BGSK).transpose(1, 2).reshape(1, 6, 32)
    torch.testing.assert_close(got, mixed @ blocks[1].attn.c_proj.weight.T, rtol=1e-12, atol=1e-12)
    _, other = blocks[2].attn(x, Where(None, None, None), first)
    assert other is not first  # the negative control: this one makes its own
    values = weights(build(variant("no bias"), seed=5))
    alone = build(variant("no bias", attention={"share_kv": 1}), values=values)
    assert torch.equal(alone(TOKENS), build(variant("no bias"), values=values)(TOKENS))


def test_latent_attention_by_its_formula() -> None:
    """Keys and values from the normalised latent, one turning key for all heads (DeepSeek-V2, equations 9 to 19)."""
    model = lively(variant("latent", n_layer=1, n_embd=32, bias=False))
    attention = model.transformer.h[0].attn
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    cos, sin = model.cos[:7, None].double(), model.sin[:7, None].double()
    got, _ = attention(x, Where(None, (cos, sin), None))
    q, q_turn, latent, key = (x @ attention.c_attn.weight.T).split([32, 16, 16, 4], dim=-1)
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    up = (latent @ attention.c_up.weight.T).view(1, 7, 8, 8)

    def turn(t: torch.Tensor) -> torch.Tensor:
        low, high = t.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, low * sin + high * cos), dim=-1)

    q_turn, key = turn(q_turn.view(1, 7, 4, 4)), turn(key[:, :, None])
    heads = []
    for head in range(4):
        content = q.view(1, 7, 4, 8)[:, :, head] @ up[:, :, head].mT
        place = q_turn[:, :, head] @ key[:, :, 0].mT
        scores = ((content + place) / math.sqrt(8 + 4)).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ up[:, :, 4 + head])
    expected = torch.cat(heads, dim=-1) @ attention.c_proj.weight.T
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_bits_are_those_of_the_buffers_and_by_hand() -> None:
    """Float32, 24 slots, 2 rows: what each kind keeps of a token and a layer."""
    by_hand = {
        "grouped queries": 3 * (2 * 2 * 8 * 32 + 64),
        "shared keys and values": 2 * (2 * 2 * 8 * 32 + 64),  # layers 0 and 2 of three
        "latent": 3 * ((16 + 4) * 32 + 64),  # the latent and the turning key, for all heads
        "latent, learned positions": 3 * (16 * 32 + 64),
        "linear": 0,
    }
    engine = TorchEngine(device="cpu")
    for name, bits in by_hand.items():
        model = build(variant(name), seed=0)
        cache = engine.cache(model, batch=2)
        assert full_bits_per_token(model.config) == bits, name
        assert cache.bits() == 2 * (24 * bits + state_bits(model.config)), name
        held = sum(t.untyped_storage().nbytes() * 8 for t in vars(cache).values() if isinstance(t, torch.Tensor))
        assert held == cache.bits(), name
    assert state_bits(variant("linear")) == 3 * 4 * 8 * (8 + 1) * 32
    assert state_bits(variant("linear, layer-norm")) == 3 * 4 * 8 * 8 * 32


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize(("factor", "original", "theta"), [(4.0, 64, 1e4), (8.0, 2048, 5e5)])
def test_scaled_frequencies_are_those_of_transformers(kind: str, factor: float, original: int, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original, "rope_theta": theta}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    theirs = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=int(factor * original),
        rope_parameters=scaling,
    )
    wanted, sharpness = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    extra = {"original": original} if kind != "linear" else {}
    ours = RopePosition.model_validate({"theta": theta, "scaling": {"kind": kind, "factor": factor} | extra})
    torch.testing.assert_close(frequencies(ours, 64).float(), wanted, rtol=1e-6, atol=0)
    assert temperature(ours) == pytest.approx(sharpness)
    plain = frequencies(RopePosition(theta=theta), 64).float()
    assert not torch.allclose(plain, wanted, rtol=1e-3)  # the negative control


def test_the_larger_base_leaves_the_first_pair_and_interpolates_the_last() -> None:
    plain = frequencies(RopePosition(), 32)
    scaled = frequencies(RopePosition.model_validate({"scaling": {"kind": "ntk", "factor": 4.0}}), 32)
    assert scaled[0] == plain[0]
    assert scaled[-1].item() == pytest.approx(plain[-1].item() / 4)
    assert ((plain / scaled)[1:] > (plain / scaled)[:-1]).all()


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn", "llama3"])
def test_a_factor_of_one_is_no_scaling(kind: str) -> None:
    ours = RopePosition.model_validate({"scaling": {"kind": kind}})
    torch.testing.assert_close(frequencies(ours, 32), frequencies(RopePosition(), 32), rtol=1e-14, atol=0)
    assert temperature(ours) == 1.0


@pytest.mark.parametrize("name", NEW)
def test_recomputation_gives_the_same_gradients(name: str) -> None:
    """Blocks that read another's keys and values are the hard case."""
    gradients = []
    for recompute in (False, True):
        model = build(variant(name), seed=1).train()
        model.recompute = recompute
        objective, _ = Learner(model)(TOKENS, TOKENS)
        objective.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-6, atol=1e-6, msg=parameter)


@pytest.mark.skipif(what_is_missing(torch.device("cpu")) is not None, reason="nothing to compile with")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch's own compiler uses it
@pytest.mark.parametrize("name", ["sinks in windows", "shared, in windows", "latent, yarn", "linear, rope"])
def test_compiled_steps_are_the_same(name: str) -> None:
    model = build(variant(name), seed=1)
    eager, compiled = Learner(model), Learner(model)
    compile_module(compiled, torch.device("cpu"))
    assert compiled(TOKENS, TOKENS)[1].item() == pytest.approx(eager(TOKENS, TOKENS)[1].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"attention": {"pattern": "SSSL"}}, r"there is none: give model\.attention\.window"),
        ({"attention": {"window": 4, "pattern": "SX"}}, r"attention\.pattern = 'SX'"),
        ({"attention": {"kind": "latent", "rope_width": 4}}, "has no use under"),
        ({"attention": {"kind": "latent", "rope_width": 5}}, "use 6"),
        ({"attention": {"kind": "linear", "n_kv_head": 2}}, "unknown setting"),
        ({"position": {"kind": "rope", "scaling": {"kind": "yarn", "slow": 40.0}}}, "must be below"),
        ({"position": {"kind": "rope", "scaling": {"kind": "ntk"}}, "n_embd": 8}, "one pair only"),
        ({"attention": {"kind": "lienar"}}, "Did you mean"),
    ],
)
def test_impossible_settings_are_refused_with_a_remedy(model: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate({"model": model}, origin="test")


@pytest.mark.parametrize("sinks", [False, True])
def test_shares_are_those_that_attention_mixes_by(sinks: bool) -> None:
    """Under a window and a scale; what the tokens do not get goes to the sink."""
    draws = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, 7, 4, dtype=torch.float64, generator=draws) for heads in (4, 2, 2))
    band = torch.ones(7, 7, dtype=torch.bool).tril().triu(-2)[None, None]
    settings = {"sinks_H": torch.randn(4, dtype=torch.float64, generator=draws) if sinks else None, "scale": 0.3}
    taken = shares(q, k, band, **settings)
    mixed = attend(q, k, v, band, dropout=0.0, **settings)
    torch.testing.assert_close(taken @ v.repeat_interleave(2, dim=1), mixed, rtol=1e-12, atol=1e-12)
    assert (taken.masked_select(~band) == 0).all()
    assert torch.allclose(taken.sum(-1), torch.ones(()).double()) != sinks
    assert not torch.allclose(taken, shares(q, k, band, **settings | {"scale": None}))
    assert not torch.allclose(taken, shares(q, k, None, **settings))

"""Every decoder computes what the model computes, for each block variant, in whatever order it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bonsaigpt.errors import GenerateError
from bonsaigpt.torch_engine.decode import make_decoder
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build
from bonsaigpt.torch_engine.native.building import Missing
from bonsaigpt.torch_engine.native.decoder import NativeDecoder
from bonsaigpt.torch_engine.rounding import quantize_int4, quantize_int8, rounded, with_matrices
from tests.torch_engine.decoders import CPU, KINDS, logits_of, make, model_of
from tests.torch_engine.variants import EAGER_ONLY, VARIANTS, variant

RANDOM = np.random.default_rng(0)
TEXT = RANDOM.integers(0, 17, 24)


def tolerance(model: GPT, text: np.ndarray = TEXT) -> float:
    """Four times what float32 itself does to these logits, computed by torch in another order of sums: about 8e-6."""
    with torch.inference_mode():
        own = model(torch.from_numpy(text)[None])[0].numpy()
    return 4 * float(np.abs(own - logits_of(model, text)).max())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads would wait for each other on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EVERY = [(name, kind) for name in VARIANTS for kind in KINDS if kind != "native" or name not in EAGER_ONLY]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_logits_are_the_models(name: str, kind: str) -> None:
    """Prefill of a part, single steps, then several at once to the end of the block."""
    model = model_of(name)
    decoder, want = make(kind, model, rows=3), logits_of(model, TEXT)
    bound = tolerance(model)
    assert bound < 2e-5 < 0.3 < np.abs(want).max()
    assert np.abs(decoder.prefill(1, TEXT[:7]) - want[6]).max() <= bound
    for t in range(7, 15):
        assert np.abs(decoder.step(np.array([1]), TEXT[t : t + 1])[0] - want[t]).max() <= bound
    assert np.abs(decoder.verify(1, TEXT[15:]) - want[15:]).max() <= bound
    assert [decoder.length(row) for row in range(3)] == [0, 24, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_f", "wte"])
def test_the_comparison_notices_a_wrong_weight_anywhere(kind: str, part: str) -> None:
    """The negative control: one entry of one parameter off by 0.5."""
    model, other = model_of("gpt2"), model_of("gpt2")
    name = next(n for n, _ in other.named_parameters() if part in n)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[3] += 0.5
    got = make(kind, other).verify(0, TEXT)
    assert np.abs(got - logits_of(model, TEXT)).max() > 10 * tolerance(model)


@pytest.mark.parametrize("kind", KINDS)
def test_widths_that_fill_no_vector(kind: str) -> None:
    """Head width 20, hidden 37, vocabulary 33: every remainder of 16."""
    mlp = {"kind": "gelu", "hidden": 37}
    model = model_of("gpt2", n_head=3, n_embd=60, vocab_size=33, mlp=mlp, block_size=19)
    got = make(kind, model).verify(0, TEXT[:19])
    assert np.abs(got - logits_of(model, TEXT[:19])).max() <= tolerance(model, TEXT[:19])


@pytest.mark.parametrize("kind", ["native", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "modern", "post-norm"])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_a_row_is_bit_equal_alone_and_among_others(name: str, kind: str, weights: str) -> None:
    """16 rows of unequal lengths in one step, in any order and company, against each row in a decoder of its own."""
    model = model_of(name, n_embd=48)
    prompts = [RANDOM.integers(0, 17, n) for n in RANDOM.integers(1, 12, 16)]
    alone = []
    for prompt in prompts:
        one = make(kind, model, weights=weights)
        one.prefill(0, prompt)
        alone.append([one.step(np.array([0]), np.array([t]))[0].copy() for t in range(10)])
    many = make(kind, model, rows=16, weights=weights)
    for row, prompt in enumerate(prompts):
        many.prefill(row, prompt)
    for t in range(10):
        order = RANDOM.permutation(16)
        parts = np.split(order, [int(RANDOM.integers(1, 16))])
        for rows in parts:
            logits = many.step(rows, np.full(len(rows), t))
            for row, got in zip(rows, logits, strict=True):
                assert np.array_equal(got, alone[row][t]), f"row {row} at step {t}"


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_threads_change_no_bit(weights: str) -> None:
    """Wide enough for 3 threads to share; a steady pace, so that they do."""
    model = model_of("modern", n_embd=256, n_head=4, n_layer=5)
    text = RANDOM.integers(0, 17, 20)
    found = []
    for threads in (1, 2, 3):
        decoder = make("native", model, rows=6, threads=threads, weights=weights)
        for row in range(6):
            decoder.prefill(row, text[: 2 + row])
        steps = [decoder.step(np.arange(6), np.full(6, t)).copy() for t in range(8)]
        ones = [decoder.step(np.array([3]), np.array([t])).copy().repeat(6, 0) for t in range(8)]
        found.append(np.stack(steps + ones))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_of_200_prompts_over_all_variants(kind: str) -> None:
    """Against the uncached reference. A choice between equals would be the rounding's; none of these is one."""
    names, made = [name for name in VARIANTS if kind != "native" or name not in EAGER_ONLY], 0
    models = {name: model_of(name) for name in names}
    decoders = {name: make(kind, model, rows=2) for name, model in models.items()}
    for number in range(200):
        name = names[number % len(names)]
        prompt = RANDOM.integers(0, 17, int(RANDOM.integers(1, 17)))
        decoder, row = decoders[name], number % 2
        decoder.truncate(row, 0)
        logits, seen = decoder.prefill(row, prompt), prompt.tolist()
        for _ in range(24 - len(prompt)):
            seen.append(int(logits.argmax()))
            logits = decoder.step(np.array([row]), np.array(seen[-1:]))[0]
        want = logits_of(models[name], np.array(seen))
        choices = want[len(prompt) - 1 : -1].argmax(1)
        assert seen[len(prompt) :] == choices.tolist(), f"prompt {number}, {name}"
        made += len(set(choices.tolist())) > 1
    assert made > 100  # the texts are no single letter repeated


@pytest.mark.parametrize("name", sorted(EAGER_ONLY))
def test_what_the_cpp_does_not_compute_is_the_models_own_code_with_a_reason(name: str) -> None:
    model = model_of(name)
    with pytest.raises(Missing, match=r"does not compute model\.(attention|mlp)"):
        NativeDecoder(model, rows=1)
    decoder = make_decoder(model, rows=1, placement=CPU)
    assert "does not compute model." in decoder.why
    assert np.abs(decoder.verify(0, TEXT) - logits_of(model, TEXT)).max() <= tolerance(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["window", "sinks"])
def test_the_comparison_notices_a_wrong_window_or_sink(kind: str, part: str) -> None:
    """The negative control: a window one token longer, or one sink off by 0.5."""
    model, other = model_of("sinks in windows"), model_of("sinks in windows")
    if part == "window":
        other = build(variant("sinks in windows", attention={"window": 10, "sinks": True, "qk_norm": True}), seed=1)
        other.load_state_dict(model.state_dict())
    else:
        with torch.no_grad():
            other.transformer.h[1].attn.sinks[2] += 0.5
    got = make(kind, other.eval()).verify(0, TEXT)
    assert np.abs(got - logits_of(model, TEXT)).max() > 10 * tolerance(model)


def test_a_window_and_a_sink_over_many_panels() -> None:
    """Windows that begin anywhere in a panel of 16 slots, and end anywhere in another."""
    model = model_of("sinks in windows", block_size=150, attention={"window": 37, "sinks": True, "n_kv_head": 2})
    text = np.random.default_rng(5).integers(0, 17, 150)
    want = logits_of(model, text)
    for kind in ("native", "eager"):
        assert np.abs(make(kind, model).verify(0, text) - want).max() <= tolerance(model, text)


@pytest.mark.parametrize(("name", "kind"), [*(("modern", k) for k in KINDS), *(("linear, rope", k) for k in KINDS[1:])])
def test_truncated_copied_and_refused_drafts(name: str, kind: str) -> None:
    model = model_of(name)
    decoder, bound = make(kind, model, rows=3), tolerance(model)
    decoder.prefill(0, TEXT[:10])
    decoder.verify(0, np.array([1, 2, 3, 4]))  # a draft; two of it are refused
    decoder.truncate(0, 12)
    seen = np.concatenate([TEXT[:10], [1, 2, 9]])
    assert np.abs(decoder.step(np.array([0]), np.array([9]))[0] - logits_of(model, seen)[-1]).max() <= bound
    decoder.prefill(2, TEXT)  # another past, longer, to be forgotten
    decoder.copy_row(0, 2)
    assert decoder.length(2) == 13
    both = decoder.step(np.array([2, 0]), np.array([5, 6])).copy()
    for got, token in zip(both, (5, 6), strict=True):
        assert np.abs(got - logits_of(model, np.append(seen, token))[-1]).max() <= bound
    decoder.truncate(2, 0)
    assert np.abs(decoder.prefill(2, TEXT[:5]) - logits_of(model, TEXT[:5])[-1]).max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_refused_and_changes_nothing(kind: str) -> None:
    model = model_of("gpt2")
    decoder = make(kind, model, rows=2)
    decoder.prefill(0, TEXT[:23])
    decoder.prefill(1, TEXT[:4])
    row, both = np.array([0]), np.array([0, 1])
    for refused, words in [
        (lambda: decoder.step(row, np.array([17])), "outside the vocabulary of 17"),
        (lambda: decoder.step(row, np.array([-1])), "outside the vocabulary"),
        (lambda: decoder.step(np.array([2]), np.array([1])), "no such row"),
        (lambda: decoder.step(row, np.array([1, 2])), "2 tokens"),
        (lambda: decoder.prefill(0, np.array([1, 2])), "24 slots, 25 are needed"),
        (lambda: decoder.prefill(1, np.zeros(0, dtype=np.int64)), "no tokens"),
        (lambda: decoder.truncate(1, 5), "cannot be cut to 5"),
        (lambda: decoder.truncate(1, -1), "cannot be cut"),
        (lambda: decoder.truncate(-1, 0), "no such row"),
        (lambda: decoder.step(np.array([1, 1]), np.array([2, 3])), "cannot be"),
    ]:
        with pytest.raises(GenerateError, match=words):
            refused()
        assert (decoder.length(0), decoder.length(1)) == (23, 4)
    full = decoder.step(both, np.array([3, 3])).copy()
    assert np.abs(full[1] - logits_of(model, np.append(TEXT[:4], 3))[-1]).max() <= tolerance(model)
    with pytest.raises(GenerateError, match="row 0 has 24 slots, 25 are needed"):
        decoder.step(both[::-1].copy(), np.array([3, 3]))
    assert (decoder.length(0), decoder.length(1)) == (24, 5)


def test_a_text_longer_than_a_chunk_and_a_batch_larger_than_a_call() -> None:
    model = build(variant("rope", block_size=700), seed=1).eval()
    text = RANDOM.integers(0, 17, 700)
    want = logits_of(model, text)
    for kind in ("native", "eager"):
        decoder = make(kind, model, rows=1)
        assert np.abs(decoder.verify(0, text) - want).max() <= tolerance(model, text)
        decoder.truncate(0, 0)
        assert np.abs(decoder.prefill(0, text) - want[-1]).max() <= tolerance(model, text)
    wide = make("native", model, rows=150)
    logits = wide.step(np.arange(150), np.arange(150) % 17)
    assert np.array_equal(logits[:17], logits[17:34])
    assert np.abs(logits[140] - logits_of(model, np.array([140 % 17]))[0]).max() <= tolerance(model)


def test_a_refused_batch_larger_than_a_call_changes_nothing() -> None:
    wide = make("native", model_of("gpt2"), rows=150)
    tokens = np.arange(150) % 17
    tokens[140] = 17
    with pytest.raises(GenerateError, match="outside the vocabulary"):
        wide.step(np.arange(150), tokens)
    assert {wide.length(row) for row in range(150)} == {0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "swiglu", "relu2", "tanh gelu", "soft cap, padded vocabulary"])
@pytest.mark.parametrize("part", ["wte", "c_attn", "c_fc", "ln_f"])
def test_what_is_no_number_stays_none(name: str, kind: str, part: str) -> None:
    """A model that diverged must be seen to: no clamp may make a number of it."""
    model = model_of(name)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if part in n)[..., 3] = torch.nan
    assert np.isnan(make(kind, model).verify(0, np.array([3, 1, 4]))).all()


def test_int8_is_within_half_a_scale_and_decoders_agree_on_it() -> None:
    weight = torch.randn(50, 30, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 2, 50)[:, None]
    weight[7] = 0.0
    q, scales = quantize_int8(weight)
    error = (q * scales[:, None] - weight).abs()
    assert (error <= scales[:, None] * (0.5 + 1e-4)).all()
    assert (error[7] == 0).all()
    assert q.abs().amax(1)[torch.arange(50) != 7].eq(127).all()
    assert not (error <= scales[:, None] * 0.4).all()  # the bound is tight
    model = model_of("gpt2")
    want = logits_of(rounded(model), TEXT)
    for kind in ("native", "eager"):
        got = make(kind, model, weights="int8").verify(0, TEXT)
        assert np.abs(got - want).max() <= tolerance(model), kind
    assert np.abs(want - logits_of(model, TEXT)).max() > 10 * tolerance(model)


def test_int4_is_ggufs_q4_0_to_the_bit() -> None:
    quants = pytest.importorskip("gguf", reason="the extra `gguf` is not installed").quants
    weight = torch.randn(20, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 20)[:, None]
    weight[7, :32] = 0.0
    q, scales = quantize_int4(weight)
    ours = (q * scales[..., None]).flatten(1)
    kind = quants.GGMLQuantizationType.Q4_0
    theirs = quants.dequantize(quants.quantize(weight.numpy(), kind), kind)
    assert np.array_equal(ours.numpy(), theirs)
    assert (q.amin(), q.amax()) == (-8, 7)
    # half a scale; a whole one at the end that -8 does not mirror; and the scale's own rounding to 11 bits
    error, most = (ours - weight).abs().unflatten(1, (-1, 32)), scales.abs()[..., None]
    assert (error <= most * (1 + 8 * 2.0**-11)).all()
    assert not (error <= most * 0.4).all()
    ragged, _ = quantize_int4(weight[:, :40])
    assert ragged.shape == (20, 2, 32)
    model = model_of("gpt2")
    one, eight, four = (logits_of(m, TEXT) for m in (model, rounded(model), rounded(model, "int4")))
    assert np.abs(four - one).max() > 2 * np.abs(eight - one).max() > 0


def test_the_engine_decides_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    native = TorchEngine(device="cpu").decoder(model, rows=2)
    if isinstance(native, NativeDecoder):
        assert native.why.startswith("native: ")
        matrices = 3 * (4 * 32 * 32 + 8 * 32 * 32) + 32 * 32  # the head's 17 outputs take two panels
        assert native.weight_bytes == 4 * matrices
        assert TorchEngine(device="cpu").decoder(model, rows=2, weights="int8").weight_bytes == matrices
        assert native.bits() == 8 * 4 * 2 * 3 * 2 * 4 * 32 * 8  # k and v, layers, rows, heads, slots, width
    half = make_decoder(
        model,
        rows=1,
        placement=choose_placement("cpu", "fp32").__class__(torch.device("cpu"), torch.bfloat16, "for this test"),
        weights="fp32",
    )
    assert isinstance(half, EagerDecoder)
    assert "fp32 alone" in half.why
    assert np.abs(half.prefill(0, TEXT) - logits_of(model, TEXT)[-1]).max() < 0.5  # 8 bits of mantissa

    class Factored(type(model.transformer.h[0].mlp.c_fc)):
        pass

    model.transformer.h[1].mlp.c_fc.__class__ = Factored
    assert "transformer.h.1.mlp.c_fc has been replaced" in make_decoder(model, rows=1, placement=CPU).why


def test_a_changed_forward_is_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever breaks the model on purpose, in a test or a study, decodes what was broken."""
    model = model_of("gpt2")
    monkeypatch.setattr(type(model.transformer.h[0].mlp), "forward", lambda self, x_BTD, *more: x_BTD * 0)
    decoder = make_decoder(model, rows=1, placement=CPU)
    assert "replaced" in decoder.why
    assert np.abs(decoder.prefill(0, TEXT) - logits_of(model, TEXT)[-1]).max() <= tolerance(model)


def test_a_copy_with_changed_matrices_leaves_the_model_alone() -> None:
    model = model_of("gpt2")
    before = logits_of(model, TEXT)
    doubled = with_matrices(model, lambda weight: weight * 2)
    assert np.abs(logits_of(doubled, TEXT) - before).max() > 0.1
    assert np.array_equal(logits_of(model, TEXT), before)
    same = with_matrices(model, lambda weight: weight)
    assert np.allclose(logits_of(same, TEXT), before, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_gpu_graphs_compute_what_the_model_computes(name: str) -> None:
    model = model_of(name, block_size=300)
    text = RANDOM.integers(0, 17, 300)
    want = logits_of(model, text)
    decoder = make_decoder(model.cuda(), rows=3, placement=choose_placement("cuda", "fp32"))
    decoder.prefill(0, text[:100])
    decoder.prefill(2, text[:90])
    for t in range(100, 299):  # over the edge of two windows
        logits = decoder.step(np.array([2, 0]), text[[t - 10, t]])
        assert np.abs(logits[1] - want[t]).max() < 1e-3
        assert np.abs(logits[0] - want[t - 10]).max() < 1e-3

"""A cache policy with the products in C++: the same text as by the model's own code, and errors that come through."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.kv.cache import PolicyCache
from bonsaigpt.torch_engine.kv.decoder import PolicyDecoder
from bonsaigpt.torch_engine.model import GPT
from tests.torch_engine.decoders import CPU, model_of

pytestmark = pytest.mark.usefixtures("cpp")

TOKENS = np.random.default_rng(0).integers(0, 17, 24)


def native(model: GPT, policy: str, **options: object) -> PolicyDecoder:
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    found = engine.decoder(model, rows=2, kv=read_policy(policy), **options)  # type: ignore[arg-type]
    assert isinstance(found, PolicyDecoder)
    assert "C++ around it" in found.why
    return found


def text(decoder: PolicyDecoder, row: int = 0) -> np.ndarray:
    """Logits after a prompt and after each further token."""
    logits = [decoder.prefill(row, TOKENS[:9])]
    return np.array(logits + [decoder.step(np.array([row]), TOKENS[i : i + 1])[0] for i in range(9, 24)])


@pytest.mark.parametrize("name", ["modern", "gpt2", "post-norm", "rope, neighbours", "structured", "sinks in windows"])
@pytest.mark.parametrize("policy", ["window(6)", "full, x=exact, chunk=4"])
def test_it_is_what_the_models_own_code_computes(name: str, policy: str) -> None:
    """Up to the order of sums in fp32; codes are left out, which a rounding can move by a whole step."""
    model = model_of(name)
    found, own = native(model, policy), PolicyDecoder(model, read_policy(policy), rows=1, placement=CPU)
    logits = text(own)
    np.testing.assert_allclose(text(found), logits, atol=3e-5)
    assert found.bits() == own.bits()
    if policy == "window(6)":
        assert np.abs(text(native(model, "window(5)")) - logits).max() > 1e-3


def test_coded_keys_and_values_and_weights() -> None:
    model = model_of("modern")
    for policy, options in (("window(6), int8", {}), ("window(6), bf16", {"weights": "int8"})):
        own = PolicyDecoder(model, read_policy(policy), rows=1, placement=CPU, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(text(native(model, policy, **options)), text(own), atol=1e-2)


def test_a_row_does_not_depend_on_the_other() -> None:
    model = model_of("modern")
    alone = text(native(model, "window(6), int4"))
    both = native(model, "window(6), int4")
    both.prefill(1, TOKENS[3:14])
    first = [both.prefill(0, TOKENS[:9])]
    first += [both.step(np.array([1, 0]), TOKENS[[i - 5, i]])[1] for i in range(9, 24)]
    assert np.array_equal(np.array(first), alone)


def test_what_the_cache_raises_comes_through_and_the_next_call_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("modern")
    decoder, attend = native(model, "window(6), int4"), PolicyCache.attend
    decoder.prefill(1, TOKENS[:4])
    with monkeypatch.context() as patch:

        def stop(cache: PolicyCache, attention: object, *more: object) -> object:
            if attention.layer == 1:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            return attend(cache, attention, *more)  # type: ignore[arg-type]

        patch.setattr(PolicyCache, "attend", stop)
        with pytest.raises(KeyboardInterrupt):
            decoder.prefill(0, TOKENS[:9])
    assert decoder.length(0) == 0
    assert np.array_equal(text(decoder), text(native(model, "window(6), int4")))


def test_a_chunk_longer_than_a_call_is_read_by_the_models_own_code() -> None:
    model = model_of("no position", block_size=200)
    tokens = np.resize(TOKENS, 150)
    policy = "window(6), chunk=150"
    whole = native(model, policy).prefill(0, tokens)
    own = PolicyDecoder(model, read_policy(policy), rows=1, placement=CPU).prefill(0, tokens)
    assert np.array_equal(whole, own)


def test_few_tokens_do_not_pay_for_building(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bonsaigpt.torch_engine.decode.is_built", lambda: False)
    engine = load_engine("torch", device="cpu", precision="fp32", threads=1)
    decoder = engine.decoder(model_of("modern"), rows=1, kv=read_policy("window(6)"), tokens=10)
    assert "the model's own code on cpu" in decoder.why
    assert "10 tokens do not pay" in decoder.why


def test_it_goes_when_its_decoder_goes() -> None:
    """The C++ holds a way back into Python, which must not hold the weights for ever."""
    decoder = native(model_of("modern"), "window(6)")
    gone = weakref.ref(decoder._blocks)  # type: ignore[arg-type]
    del decoder
    gc.collect()
    assert gone() is None

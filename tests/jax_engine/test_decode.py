"""Decoding in JAX: equal to reading the whole text, whatever the pieces; and compiled once for each size."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")

import jax
import jax.numpy as jnp

from bonsaigpt.data.batches import Batch
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Request, Session
from bonsaigpt.jax_engine.decode import JaxDecoder, step, turned
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.sampling import Sampling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, weights
from tests.torch_engine.decoders import logits_of, make, model_of

ENGINE = JaxEngine(device="cpu")
TEXT = np.array([3, 14, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4])


def decoder_of(model: GPT, rows: int = 2) -> JaxDecoder:
    return ENGINE.decoder(ENGINE.model(model.config, weights(model)), rows=rows)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("shared, in windows", {}),
        ("linear, rope", {}),
        ("gpt2", {"tie_embeddings": False, "n_layer": 1}),
        ("structured", {}),
    ],
)
def test_pieces_steps_copies_and_going_back_are_the_whole_text(name: str, changes: dict[str, Any]) -> None:
    model = model_of(name, **changes)
    wished = logits_of(model, TEXT)
    assert np.abs(wished).max() > 0.5  # otherwise 2e-5 would mean little
    decoder = decoder_of(model)
    near = lambda found, at: np.abs(found - wished[at]).max() <= 2e-5  # noqa: E731
    assert near(decoder.prefill(0, TEXT[:5]), 4)
    decoder.prefill(1, TEXT[7:16])  # a neighbour with another text
    alone = decoder.step(np.array([0]), TEXT[5:6])
    assert near(alone[0], 5)
    both = decoder.step(np.array([1, 0]), np.array([TEXT[0], TEXT[6]]))
    assert near(both[1], 6)
    assert near(decoder.verify(0, TEXT[7:11]), slice(7, 11))
    assert near(decoder.prefill(0, TEXT[11:22]), 21)  # 13 slots are left: pieces of 8, 2 and 1
    decoder.truncate(0, 9)
    decoder.copy_row(0, 1)
    assert near(decoder.step(np.array([1]), TEXT[9:10])[0], 9)
    assert near(decoder.prefill(0, TEXT[9:]), 22)
    assert (decoder.length(0), decoder.length(1)) == (23, 10)
    decoder.truncate(1, 9)  # the negative control: another past is seen
    assert not near(decoder.step(np.array([1]), TEXT[9:10] + 1)[0], 9)


def test_a_rows_bits_do_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on one that looks at more slots either."""
    monkeypatch.setattr("bonsaigpt.jax_engine.decode._SMALLEST_WINDOW", 4)
    model = model_of("modern")
    found, windows = [], []
    for neighbour in (TEXT[:21], TEXT[3:5]):
        decoder = decoder_of(model, rows=3)
        decoder.prefill(1, TEXT[:4])
        decoder.prefill(2, neighbour)
        rows = np.array([1, 2]) if len(neighbour) == 21 else np.array([1])
        windows.append([decoder._window(decoder.length(row) + 1) for row in rows])
        found.append(decoder.step(rows, np.full(len(rows), 7))[0])
    assert windows == [[8, 24], [8]]
    assert np.array_equal(*found)


def test_matrices_are_turned_once_and_not_in_every_product() -> None:
    """XLA on a CPU would turn a matrix within the loop over the outputs of a product, and compute what is fused there
    once for each output: no product of the program may hold a copy."""
    model = model_of("gpt2")
    decoder = decoder_of(model, rows=1)
    params, config = decoder._params, decoder.config
    weight = params["transformer"]["h"]["0"]["mlp"]["c_fc"]["weight"]
    assert weight.shape == (config.n_embd, 4 * config.n_embd)
    assert params["transformer"]["wpe"]["weight"].shape == (config.block_size, config.n_embd)  # rows of it are taken
    back = turned(config, params)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), turned(config, back), params))
    token, start = np.array([3], np.int32), np.array([4], np.int32)

    def turning_products(program: Any, params: Any) -> int:
        text = program.lower(params, decoder._cache, token, start, seen=24).compile().as_text()
        bodies = re.findall(r"^%fused_computation.*?^}", text, flags=re.DOTALL | re.MULTILINE)
        return sum(" dot(" in body and " copy(" in body for body in bodies)

    plain = jax.jit(functools.partial(_step_as_spelled, config), static_argnames=("seen",))
    assert turning_products(decoder._step._jitted, params) == 0
    assert turning_products(plain, back) > 0  # the negative control


def _step_as_spelled(config: Any, params: Any, *arguments: Any, seen: int) -> Any:
    """A step with matrices as the spec has them."""
    return step(config, turned(config, params), *arguments, seen=seen)


def test_one_program_for_each_size_whatever_the_text_and_the_sampling() -> None:
    """Prompts in one piece of 16, steps in 24 slots: two programs, compiled once for all sessions."""
    model = model_of("gpt2", n_layer=1)
    sampled: list[list[int]] = []
    decoder = decoder_of(model)
    programs = decoder._prefill, decoder._step
    for length, temperature, seed in ((3, 0.0, 0), (5, 0.7, 1), (9, 1.3, 2)):
        session = Session(decoder_of(model))
        request = Request(
            prompt=TEXT[:length].tolist(), max_tokens=6, sampling=Sampling(temperature=temperature, seed=seed)
        )
        sampled += [done.tokens for done in session.run([request, request])]
        assert [program.traces for program in programs] == [1, 1]
    assert sampled[0] == sampled[1]
    prefill = JaxDecoder.prefill
    prefill(decoder, 0, TEXT[:10])  # the negative control: a piece of 16 does not fit any more behind ten
    prefill(decoder, 0, TEXT[10:13])
    assert programs[0].traces == 2


def test_what_is_read_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy texts are read ahead, by a program of their own; a choice against it forgets what was read."""
    monkeypatch.setattr("bonsaigpt.jax_engine.decode._AHEAD", 4)  # as 4 choices begin it
    model = model_of("sliding windows", n_layer=1)
    wished = logits_of(model, TEXT)
    text, at = [int(TEXT[0])], 0
    decoder = decoder_of(model, rows=1)
    logits_V = decoder.prefill(0, TEXT[:1])
    calls = []
    while len(text) < 20:
        text.append(int(TEXT[at]) if len(text) == 14 else int(logits_V.argmax()))
        [logits_V] = decoder.step(np.array([0]), np.array(text[-1:]))
        calls.append(len(decoder._read))
    assert calls[3:10] == [3, 2, 1, 0, 3, 2, 1]  # after four likeliest choices in a row
    assert calls[13] == 0
    whole = logits_of(model, np.array(text))
    assert np.abs(logits_V - whole[-1]).max() <= 2e-5
    assert text[1:14] == whole.argmax(axis=-1)[:13].tolist()
    assert text[15:] == whole.argmax(axis=-1)[14:19].tolist()
    assert np.abs(wished[-1] - whole[-1]).max() > 1e-3


def test_the_same_text_as_pytorch() -> None:
    model = model_of("modern")
    request = Request(prompt=TEXT[:4].tolist(), max_tokens=15, sampling=Sampling(temperature=0.9, top_k=9, seed=3))
    texts = [Session(decoder).run([request])[0].tokens for decoder in (decoder_of(model), make("eager", model))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["modern", pytest.param("linear, rope", marks=pytest.mark.slow)])
def test_compiled_is_eager(name: str) -> None:
    """XLA once gave wrong values where an array is updated from its own slice (openxla/xla#49176)."""
    model = model_of(name, n_layer=1)
    compiled = decoder_of(model).prefill(0, TEXT[:9])
    with jax.disable_jit():
        eager = decoder_of(model).prefill(0, TEXT[:9])
    assert np.abs(compiled - eager).max() <= 2e-6 * np.abs(eager).max()


def test_int8_is_pytorchs_rounding() -> None:
    model = model_of("modern", n_layer=1)
    ours, torch_engine = ENGINE.model(model.config, weights(model)), TorchEngine(device="cpu")
    decoder = ENGINE.decoder(ours, rows=1, weights="int8")
    wished = logits_of(torch_engine.rounded(model), TEXT)
    batch = Batch(tokens_BT=TEXT[None, :-1], targets_BT=TEXT[None, 1:], count=len(TEXT) - 1)
    scores = [engine.evaluate(engine.rounded(m), batch)[0] for engine, m in ((ENGINE, ours), (torch_engine, model))]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert np.abs(decoder.verify(0, TEXT) - wished).max() <= 2e-5
    assert np.abs(logits_of(model, TEXT) - wished).max() > 1e-3
    four = ENGINE.rounded(ENGINE.model(model.config, weights(model)), "int4")
    wished = logits_of(TorchEngine(device="cpu").rounded(model, "int4"), TEXT)
    assert np.abs(ENGINE.decoder(four, rows=1).verify(0, TEXT) - wished).max() <= 2e-5


@pytest.mark.parametrize(
    ("rows", "tokens", "words"),
    [([0, 0], [1, 2], "one token for each"), ([2], [1], "no such row"), ([0], [17], "outside the vocabulary")],
)
def test_what_cannot_be_is_refused(rows: list[int], tokens: list[int], words: str) -> None:
    decoder = decoder_of(model_of("gpt2", n_layer=1))
    with pytest.raises(GenerateError, match=words):
        decoder.step(np.array(rows), np.array(tokens))
    with pytest.raises(GenerateError, match="24 slots, 25 are needed"):
        decoder.prefill(0, np.zeros(25, np.int64))
    with pytest.raises(GenerateError, match="no tokens"):
        decoder.prefill(0, np.zeros(0, np.int64))
    assert decoder.length(0) == 0


def test_bits_are_the_buffers() -> None:
    decoder = decoder_of(model_of("grouped queries"))
    held = sum(buffer.nbytes * 8 for buffer in jax.tree.leaves(decoder._cache))
    assert decoder.bits() == held == 3 * 2 * 25 * 2 * 2 * 8 * 32  # layers, rows, slots and one more, k and v, heads

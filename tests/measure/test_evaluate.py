"""The reported numbers are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bonsaigpt.config import SortData, validate
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer
from bonsaigpt.data.toys import task_batches
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.generate import generate
from bonsaigpt.measure import evaluate
from bonsaigpt.sampling import Sampling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import build

ENGINE = TorchEngine(device="cpu")
TEXT = "the cat sat on the mat, and the dog: Grüße! " * 9


def source(tokenizer, block: int = 10) -> TokenBatches:
    """A text as its own validation split."""
    ids = tokenizer.encode(TEXT)
    return TokenBatches(
        train=TokenStream.of(ids),
        val=TokenStream.of(ids),
        tokenizer=tokenizer,
        order="shuffled",
        seed=0,
        plan=BatchPlan(batch_size=2, block_size=block),
        fingerprint="x",
    )


@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer(TEXT), ByteTokenizer(), BpeTokenizer.train([TEXT], 280)], ids=lambda t: t.kind
)
def test_loss_perplexity_and_bits_per_byte_by_hand(tokenizer) -> None:
    """Window by window and token by token in float64, against bytes counted from the text itself."""
    config = validate({"model": {"vocab_size": tokenizer.vocab_size, "block_size": 10}}, origin="t").model
    model = build(config, seed=1).eval()
    ids = torch.from_numpy(tokenizer.encode(TEXT).astype(np.int64))
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 10):
            window = ids[start : start + 11]
            logs = model(window[None, :-1])[0].double().log_softmax(-1)
            nats -= logs[torch.arange(len(window) - 1), window[1:]].sum().item()
    got = evaluate(ENGINE, model, source(tokenizer))
    assert got.tokens == len(ids) - 1
    assert got.loss == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert got.perplexity == pytest.approx(math.exp(got.loss))
    text_bytes = len(TEXT.encode()) - len(tokenizer.decode_bytes(ids[:1].numpy()))
    assert got.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)
    assert got.exact is None


def test_a_model_that_knows_nothing_pays_the_alphabet() -> None:
    """All logits equal: log2(V) bits a token; with one byte a token that is bits per byte."""
    tokenizer = ByteTokenizer()
    config = validate({"model": {"vocab_size": 257, "block_size": 10}}, origin="t").model
    model = build(config, seed=1)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
    got = evaluate(ENGINE, model, source(tokenizer))
    assert got.bits_per_byte == pytest.approx(math.log2(257), rel=1e-6)


def test_two_evaluations_are_equal_and_another_model_is_not() -> None:
    tokenizer = CharTokenizer(TEXT)
    config = validate({"model": {"vocab_size": tokenizer.vocab_size, "block_size": 10}}, origin="t").model
    one, two = build(config, seed=1), build(config, seed=2)
    data = source(tokenizer)
    assert evaluate(ENGINE, one, data) == evaluate(ENGINE, one, data) != evaluate(ENGINE, two, data)


def test_exact_is_what_greedy_decoding_gets_right() -> None:
    """A short training leaves a model that is right about some lists; each verdict is checked by decoding."""
    config = validate(
        {
            "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 5, "vocab_size": 3},
            "data": {"kind": "sort", "vocab": 3, "length": 3, "val_examples": 40},
            "train": {"batch_size": 32, "threads": 1},
            "optim": {"lr": 1e-2},
        },
        origin="t",
    )
    assert isinstance(config.data, SortData)
    data = task_batches(config.data, seed=3, plan=BatchPlan(batch_size=32, block_size=config.model.block_size))
    state = ENGINE.init(config)
    for step in range(25):
        ENGINE.step(state, data.batch_at(step), config=config, share=1.0, step=step)
    share = evaluate(ENGINE, state.model, data).exact
    solved = 0
    [batch] = data.validation()
    lists = batch.tokens_BT[:, :3]
    greedy = generate(ENGINE, state.model, lists, tokens=3, sampling=Sampling(temperature=0))
    answers = np.stack(list(greedy), axis=1)
    solved = int((answers == np.sort(lists, axis=1)).all(axis=1).sum())
    assert 0 < solved < 40  # otherwise the test says nothing
    assert share == solved / 40

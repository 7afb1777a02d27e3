"""Details of an evaluation: against hand counts, under three tokenizers, and the sums of the plain evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bonsaigpt.config import validate
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.target_scores import TargetScores
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError
from bonsaigpt.measure import evaluate
from bonsaigpt.measure.details import calibration, clustered_mean, details_of, over_positions, score_targets, strided
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
TEXT = "Žluťoučký kůň sat on the mat, and the cat saw it run far away from home. " * 6
TOKENIZERS: list[Tokenizer] = [CharTokenizer(TEXT), ByteTokenizer(), BpeTokenizer.train([TEXT], 300)]


def source_of(tokenizer: Tokenizer, block: int = 16) -> TokenBatches:
    ids = TokenStream.of(tokenizer.encode(TEXT).astype(np.int64))
    plan = BatchPlan(batch_size=1, block_size=block)
    return TokenBatches(train=ids, val=ids, tokenizer=tokenizer, order="shuffled", seed=1, plan=plan, fingerprint="")


def model_of(tokenizer: Tokenizer, block: int = 16) -> GPT:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": block, "vocab_size": tokenizer.vocab_size}
    model = build(validate({"model": sizes}, origin="test").model, seed=3).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # some confidence, so that calibration has something to say
    return model


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
def test_bits_per_byte_are_counted_by_hand(tokenizer: Tokenizer) -> None:
    source, model = source_of(tokenizer), model_of(tokenizer)
    ids = tokenizer.encode(TEXT).astype(np.int64)
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = torch.from_numpy(ids[start : start + 17])
        with torch.inference_mode():
            logs = model(window[None, :-1])[0].double().log_softmax(-1)
        nats -= float(logs.gather(1, window[1:, None]).sum())
    text_bytes = len(TEXT.encode()) - len(tokenizer.decode_bytes(ids[:1]))  # the first token is never predicted
    wanted = nats / math.log(2) / text_bytes
    found = evaluate(ENGINE, model, source)
    details = details_of(score_targets(ENGINE, model, source.validation(), total=1), source)
    assert details.bits_per_byte is not None
    # Logits of float32 against a log-softmax of float64: some 2^-23 of about 5 nats for each token.
    assert found.bits_per_byte == pytest.approx(wanted, rel=1e-5)
    assert details.bits_per_byte.value == pytest.approx(wanted, rel=1e-5)
    assert details.loss.value == pytest.approx(found.loss, rel=1e-6)
    assert details.tokens == found.tokens == len(ids) - 1


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
def test_a_model_that_knows_nothing_has_log2_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    source, model = source_of(tokenizer), model_of(tokenizer)
    with torch.no_grad():
        model.transformer.wte.table.zero_()  # the tied head makes all logits equal
    n = len(source.val) - 1
    wanted = math.log2(tokenizer.vocab_size) * n / source.validation_bytes()
    details = details_of(score_targets(ENGINE, model, source.validation(), total=n), source)
    assert evaluate(ENGINE, model, source).bits_per_byte == pytest.approx(wanted, rel=1e-6)
    assert details.bits_per_byte is not None
    assert details.bits_per_byte.value == pytest.approx(wanted, rel=1e-6)
    assert details.perplexity.value == pytest.approx(tokenizer.vocab_size, rel=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_a_sliding_window_scores_each_token_once_with_its_past(stride: int) -> None:
    tokenizer = TOKENIZERS[0]
    source, model = source_of(tokenizer), model_of(tokenizer)
    ids = torch.from_numpy(source.val.read(0, len(source.val)).astype(np.int64))
    scores = score_targets(ENGINE, model, strided(source, stride), total=1)
    assert len(scores.losses_N) == len(ids) - 1
    wanted = []
    for target in range(1, len(ids)):
        start = max(0, math.ceil((target - 16) / stride)) * stride  # the first window that reaches it
        with torch.inference_mode():
            logs = model(ids[None, start:target])[0, -1].double().log_softmax(-1)
        wanted.append(-float(logs[ids[target]]))
    np.testing.assert_allclose(scores.losses_N, wanted, atol=1e-4)
    if stride == 16:  # windows that do not overlap: the plain evaluation
        assert scores.losses_N.mean() == pytest.approx(evaluate(ENGINE, model, source).loss, rel=1e-6)
    else:
        assert scores.places_N[20:].min() >= 16 - stride - 1
    with pytest.raises(DataError, match="leaves tokens out"):
        next(strided(source, 17))


def test_errors_are_over_rows() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0, 6.0, 6.0])
    rows = np.array([0, 0, 0, 1, 1, 1])
    alike = clustered_mean(values, rows)
    assert alike.value == 4.0
    assert alike.error == pytest.approx(2.0)  # two rows of mean 2 and 6: sqrt(2 / 1 * (36 + 36)) / 6
    single = clustered_mean(values, np.arange(6))
    assert single.error == pytest.approx(values.std(ddof=1) / math.sqrt(6))
    assert clustered_mean(values, np.zeros(6)).error is None


def test_the_error_is_that_of_repetitions() -> None:
    """Of samples of clustered values the means scatter as their errors say."""
    draws = np.random.default_rng(0)
    rows = np.repeat(np.arange(40), 10)
    found = [clustered_mean(np.repeat(draws.normal(size=40), 10) + draws.normal(size=400), rows) for _ in range(400)]
    scatter = np.std([f.value for f in found])
    assert np.mean([f.error for f in found if f.error is not None]) == pytest.approx(scatter, rel=0.12)
    naive = math.sqrt(2 / 400)  # as if all 400 were independent
    assert scatter > 1.8 * naive


def scores_of(**arrays: list[float]) -> TargetScores:
    n = len(arrays["confidence_N"])
    given = {"losses_N": np.zeros(n), "rows_N": np.zeros(n), "places_N": np.arange(n), "right_N": np.ones(n, bool)}
    return TargetScores(**given | {name: np.array(values) for name, values in arrays.items()})


def test_calibration_by_hand() -> None:
    confidence, right = np.array([0.1, 0.1, 0.95, 0.95, 1.0]), np.array([0, 1, 1, 1, 0], bool)
    bins = calibration(confidence, right, 10)
    assert [(b.targets, b.right) for b in bins] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    scores = scores_of(confidence_N=confidence.tolist(), right_N=right.tolist())
    found = details_of(scores, source_of(TOKENIZERS[1]))
    assert found.calibration_error == pytest.approx((2 * 0.4 + 3 * (2.9 / 3 - 2 / 3)) / 5)
    perfect = np.random.default_rng(1).random(20_000)
    bins = calibration(perfect, np.random.default_rng(2).random(20_000) < perfect)
    assert sum(b.targets * abs(b.confidence - b.right) for b in bins) / 20_000 < 0.02


def test_positions_are_in_stretches_that_double() -> None:
    scores = scores_of(confidence_N=[0.5] * 11, losses_N=list(range(11)), rows_N=[0] * 11)
    found = over_positions(scores)
    assert [(s.first, s.last, s.targets, s.loss.value) for s in found] == [
        (1, 1, 1, 0.0),
        (2, 2, 1, 1.0),
        (3, 4, 2, 2.5),
        (5, 8, 4, 5.5),
        (9, 11, 3, 9.0),
    ]

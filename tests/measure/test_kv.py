"""Teacher-forced losses through a cache: they are the model's own where nothing is lost, and flow through the codes."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.data.batches import Batch
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import DataError
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import contiguous, cut, plain_bits, read_windows, reading, score_policy
from tests.torch_engine.decoders import logits_of, model_of

MODEL = model_of("modern")
CONFIG = MODEL.config
IDS = np.random.default_rng(0).integers(0, 17, 400)
ENGINE = load_engine("torch", device="cpu", precision="fp32", threads=1)


def own_losses(tokens: np.ndarray) -> np.ndarray:
    """Nats of each target of one row, by the model in float64."""
    logits = logits_of(MODEL, tokens[:-1])
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_losses_of_an_exact_cache_are_the_models(chunk: int) -> None:
    streams = cut(IDS, 6, 24)
    read = reading(ENGINE, MODEL, CONFIG, read_policy("full"), streams, chunk=chunk)
    want = np.stack([own_losses(row) for row in streams])
    assert np.abs(read.losses_RT - want).max() < 1e-5
    last = (24 - 1) // chunk * chunk
    assert read.bits == 32 / 16 * plain_bits(CONFIG, last) + plain_bits(CONFIG, 24 - last)


def test_tokens_under_way_count_as_what_is_held_of_them() -> None:
    """Of a token on its way neither more nor less than of one that is held: its input, or its keys and values."""
    model, streams = model_of("modern", attention={"n_kv_head": 4}), cut(IDS, 2, 24)
    D = model.config.n_embd
    for words, numbers in [("full, x=exact", D), ("full", 2 * D), ("full; layers 1: full, x=exact", 5 / 3 * D)]:
        read = reading(ENGINE, model, model.config, read_policy(words), streams)
        assert read.bits == model.config.n_layer * numbers * (23 * 32 + 16)


def test_a_lossy_cache_is_seen_unless_all_is_read_at_once() -> None:
    """The published mistake: in one pass every query sees exact keys, and two bits cost nothing."""
    streams = cut(IDS, 6, 24)
    exact = reading(ENGINE, MODEL, CONFIG, read_policy("full"), streams, keep_logits=True)

    def kl(chunk: int) -> float:
        read = reading(ENGINE, MODEL, CONFIG, read_policy("int2"), streams, chunk=chunk, reference_RTV=exact.logits_RTV)
        assert read.kl_RT is not None
        return float(read.kl_RT.mean())

    assert kl(1) > kl(8) > 1e-3
    assert kl(24) < 1e-9


def test_windows_from_raw_text_are_the_models() -> None:
    streams = cut(IDS, 2, 40)
    read = read_windows(ENGINE, MODEL, CONFIG, streams, first=24)
    for row, losses in zip(streams, read.losses_RT, strict=True):
        for t in (24, 39):
            assert losses[t] == pytest.approx(own_losses(row[t + 1 - 24 : t + 2])[-1], abs=1e-5)


def test_a_policy_is_scored_against_the_same_pieces() -> None:
    exact = score_policy(ENGINE, MODEL, CONFIG, read_policy("full, chunk=24"), IDS)
    assert (exact.loss_added, exact.tokens, exact.piece) == (0.0, 16 * 24, 24)
    coarse = score_policy(ENGINE, MODEL, CONFIG, read_policy("window(24), int2, chunk=1"), IDS)
    assert coarse.piece == 16 * 24
    assert exact.margin == 0.0
    assert coarse.margin is None, "one piece says nothing of the spread between pieces"
    assert abs(coarse.loss_added) > 1e-3  # of an untrained model, either way
    assert coarse.factor > 2


def test_pieces_follow_each_other() -> None:
    pieces = cut(np.arange(100), 3)
    assert pieces.shape == (3, 34)
    assert pieces[:, 0].tolist() == [0, 33, 66]
    assert (pieces[:-1, -1] == pieces[1:, 0]).all()
    with pytest.raises(DataError, match="cannot be cut into 9 streams"):
        cut(np.arange(5), 9)


class Source:
    """A validation split of given rows."""

    parts: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        self.batch = Batch(tokens_BT=tokens, targets_BT=targets, count=int((targets >= 0).sum()))

    def validation(self):  # type: ignore[no-untyped-def]
        yield self.batch


def test_only_one_text_is_read_as_one() -> None:
    text = np.arange(9)
    rows, targets = text[:8].reshape(2, 4), text[1:].reshape(2, 4).copy()
    assert contiguous(Source(rows, targets)).tolist() == text.tolist()  # type: ignore[arg-type]
    targets[1, 2:] = -1
    assert contiguous(Source(rows, targets)).tolist() == text[:7].tolist()  # type: ignore[arg-type]
    for wrong in (rows[::-1], np.zeros_like(rows)):
        with pytest.raises(DataError, match="no contiguous text"):
            contiguous(Source(wrong, targets))  # type: ignore[arg-type]

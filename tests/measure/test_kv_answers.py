"""Answers of a task through a cache: what full has, and what a cache that has forgotten cannot have."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bonsaigpt import recipes
from bonsaigpt.config import KVConfig, WindowSelection, derive
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure import evaluate
from bonsaigpt.measure.kv_answers import KVAnswers, score_answers

ENGINE = load_engine("torch", device="cpu", precision="fp32", threads=1)
CONFIG = derive(
    recipes.load("recall"),
    data={"pairs": 2, "gap": 6, "queries": 2, "keys": 4, "values": 4, "val_examples": 60},
    model={"n_embd": 32, "block_size": 13},
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_source(CONFIG, tmp_path_factory.mktemp("corpora"))


class Lookup:
    """A reader that answers each key with the value beside it, if both are among the tokens that it remembers."""

    def __init__(self, kv: KVConfig, vocabulary: int) -> None:
        select = kv.policy.select
        self._window = select.window if isinstance(select, WindowSelection) else 99
        self._vocabulary = vocabulary
        self._past = np.empty((0, 0), dtype=np.int64)

    def bits(self) -> int:
        return 8 * self._past[:, -self._window + 1 :].size

    def read(self, tokens_BT: np.ndarray) -> np.ndarray:
        return np.stack([self._answer(tokens_B) for tokens_B in tokens_BT.T], axis=1)

    def _answer(self, tokens_B: np.ndarray) -> np.ndarray:
        new = tokens_B[:, None]
        self._past = new if self._past.size == 0 else np.concatenate((self._past, new), axis=1)
        logits = np.zeros((len(new), self._vocabulary), dtype=np.float32)
        for row, past in enumerate(self._past[:, -self._window :]):
            beside = [v for k, v in pairwise(past) if k == past[-1]]
            logits[row, beside[0] if beside else -1] = 5.0
        return logits


def read(source: Any, words: str) -> KVAnswers:
    config = derive(CONFIG, model={"vocab_size": source.tokenizer.vocab_size}).model
    engine: Any = SimpleNamespace(reader=lambda model, kv: Lookup(kv, model))
    [found] = score_answers(engine, config.vocabulary, config, [read_policy(words)], source)
    return found


def test_an_untrained_model_answers_through_full_as_it_does_without(source: Any, tmp_path: Path) -> None:
    config = derive(CONFIG, model={"vocab_size": source.tokenizer.vocab_size, "residual_init": "scaled"})
    model = ENGINE.model_of(ENGINE.init(config))
    policies = [read_policy(words) for words in ("full, chunk=1", "full, sign, chunk=1")]
    found, coarse = score_answers(ENGINE, model, config.model, policies, source)
    whole = evaluate(ENGINE, model, source)
    assert found.exact == pytest.approx(whole.exact)
    assert found.loss == pytest.approx(whole.loss, abs=1e-5)
    assert (found.exact_lost, found.margin, found.problems) == (0.0, 0.0, 60)
    assert coarse.loss != pytest.approx(whole.loss, abs=1e-5)


def test_what_is_out_of_the_window_cannot_be_answered(source: Any) -> None:
    """The pairs begin 10 and 8 tokens before the first query, 12 and 10 before the second."""
    whole = read(source, "window(13), chunk=1")
    assert (whole.exact, whole.right, whole.exact_lost) == (1.0, 1.0, 0.0)
    some = read(source, "window(11), chunk=1")
    assert 0.5 <= some.right < 1
    assert 0 < some.exact < 1
    assert some.exact_lost == pytest.approx(1 - some.exact)
    assert 0 < some.margin < 0.2
    none = read(source, "window(4), chunk=1")
    assert (none.exact, none.right, none.exact_lost, none.margin) == (0.0, 0.0, 1.0, 0.0)
    assert none.bits < some.bits < whole.bits
    assert none.factor > some.factor

"""From logits to tokens."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.errors import GenerateError
from bonsaigpt.sampling import Sampling, choose, probabilities

LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))


def test_temperature() -> None:
    np.testing.assert_allclose(probabilities(LOGITS, Sampling()), np.exp(LOGITS), rtol=1e-12)
    np.testing.assert_allclose(
        probabilities(LOGITS, Sampling(temperature=0.5))[0], np.array([25, 9, 2.25, 0.25]) / 36.5, rtol=1e-12
    )
    assert probabilities(LOGITS, Sampling(temperature=0)).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose(np.zeros((1, 5)), Sampling(temperature=0), position=0).tolist() == [0]


def test_top_k_keeps_ties_and_more_than_the_vocabulary_is_all() -> None:
    assert (probabilities(LOGITS, Sampling(top_k=2)) > 0).sum(axis=1).tolist() == [2, 2]
    assert (probabilities(np.zeros((1, 4)), Sampling(top_k=2)) > 0).sum() == 4
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(top_k=99)), np.exp(LOGITS), rtol=1e-12)


@pytest.mark.parametrize(("p", "kept"), [(0.4, 1), (0.5, 1), (0.500001, 2), (0.79, 2), (0.94, 3), (0.96, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, kept: int) -> None:
    probs = probabilities(LOGITS, Sampling(top_p=p))
    assert (probs > 0).sum(axis=1).tolist() == [kept, kept]
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-12)


def test_draws_follow_the_distribution() -> None:
    n = 20_000
    draws = choose(np.repeat(LOGITS[:1], n, axis=0), Sampling(seed=3), position=7)
    shares = np.bincount(draws, minlength=4) / n
    # A share of n draws has standard deviation sqrt(p (1 - p) / n) <= 0.0036: five of them.
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.018)


def test_noise_is_a_function_of_seed_row_and_position() -> None:
    wide = np.zeros((6, 1000))
    six = choose(wide, Sampling(seed=1), position=5)
    assert choose(wide[:2], Sampling(seed=1), position=5).tolist() == six[:2].tolist()
    assert choose(wide, Sampling(seed=1), position=6).tolist() != six.tolist()
    assert choose(wide, Sampling(seed=2), position=5).tolist() != six.tolist()
    assert len(set(six.tolist())) > 1


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = np.full((5000, 50), -np.inf)
    logits[:, [7, 49]] = [-800.0, 0.0]  # the first underflows to zero beside the second
    logits = np.maximum(logits, -1e30)
    assert set(choose(logits, Sampling(), position=0).tolist()) == {49}


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_impossible_settings(bad: dict, word: str) -> None:
    with pytest.raises(GenerateError, match=word):
        Sampling(**bad)


def test_logits_of_a_diverged_model_are_refused() -> None:
    with pytest.raises(GenerateError, match="diverged"):
        probabilities(np.array([[np.nan, 0.0]]), Sampling())

"""From logits to tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.errors import GenerateError
from bonsaigpt.sampling import Chooser, Sampling, choose_rows, log_probabilities
from tests.sampling.textbook import CUTS, textbook


def chooser(settings: Sampling, size: int, *, prompt: list[int] | None = None) -> Chooser:
    return Chooser(settings, prompt=np.array(prompt or [], dtype=np.int64), vocab_size=size)


def probabilities(logits_BV: np.ndarray, settings: Sampling) -> np.ndarray:
    """The distribution of each row."""
    one = chooser(settings, logits_BV.shape[1])
    return np.exp([one.distribution(logits_V) for logits_V in logits_BV])


def choose(logits_BV: np.ndarray, settings: Sampling, *, position: int) -> np.ndarray:
    """The token of each row; rows have noise of their own."""
    rows = [chooser(replace(settings, row=row), logits_BV.shape[1]) for row in range(len(logits_BV))]
    return np.array(choose_rows(logits_BV, rows, [position] * len(rows)))


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
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-320}, "use 0"),
        ({"min_p": 0.0}, "min_p"),
        ({"typical_p": 2.0}, "typical_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"logit_bias": {3: float("-inf")}}, "token 3"),
        ({"row": -1}, "row"),
    ],
)
def test_impossible_settings(bad: dict, word: str) -> None:
    with pytest.raises(GenerateError, match=word):
        Sampling(**bad)


def test_logits_of_a_diverged_model_are_refused() -> None:
    with pytest.raises(GenerateError, match="diverged"):
        probabilities(np.array([[np.nan, 0.0]]), Sampling())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_of_a_diverged_model_are_refused_by_every_path(bad: float) -> None:
    logits = np.array([[0.0, bad], [0.0, 1.0]])
    for settings in (Sampling(), Sampling(temperature=0), Sampling(top_k=1), Sampling(presence_penalty=1)):
        with pytest.raises(GenerateError, match="diverged"):
            chooser(settings, 2).choose(logits[0], position=0)
        with pytest.raises(GenerateError, match="diverged"):
            choose(logits, settings, position=0)


RANDOM = np.random.default_rng(5)


def random_settings() -> Sampling:
    """Any rules together."""
    pick = RANDOM.random
    return Sampling(
        temperature=float(RANDOM.choice([0.0, 0.3, 1.0, 1.7])),
        top_k=int(RANDOM.integers(1, 40)) if pick() < 0.5 else None,
        top_p=float(RANDOM.uniform(0.05, 1)) if pick() < 0.5 else None,
        min_p=float(RANDOM.uniform(0.01, 0.5)) if pick() < 0.3 else None,
        typical_p=float(RANDOM.uniform(0.1, 1)) if pick() < 0.3 else None,
        repetition_penalty=float(RANDOM.choice([1.0, 0.8, 1.5])),
        frequency_penalty=float(RANDOM.choice([0.0, 0.4, -0.2])),
        presence_penalty=float(RANDOM.choice([0.0, 0.7])),
        logit_bias={int(RANDOM.integers(30)): float(RANDOM.normal())} if pick() < 0.3 else {},
        seed=int(RANDOM.integers(1000)),
    )


def said_something(settings: Sampling) -> tuple[Chooser, list[int], list[int]]:
    prompt, said = RANDOM.integers(30, size=4).tolist(), RANDOM.integers(30, size=6).tolist()
    one = chooser(settings, 30, prompt=prompt)
    for token in said:
        one.accept(token)
    return one, prompt, said


def test_all_rules_together_are_the_textbooks_in_the_stated_order() -> None:
    differs = 0
    for _ in range(300):
        settings = random_settings()
        one, prompt, said = said_something(settings)
        logits = RANDOM.normal(scale=2, size=30).astype(np.float32)
        found = np.exp(one.distribution(logits))
        np.testing.assert_allclose(found, textbook(logits, settings, prompt=prompt, said=said), atol=1e-12)
        swapped = textbook(logits, settings, prompt=prompt, said=said, cuts=CUTS[::-1])
        differs += not np.allclose(found, swapped, atol=1e-12)
    assert differs > 20  # the order matters, and this test would see another


def test_many_rows_choose_what_each_would_alone() -> None:
    for size in (30, 3000):
        choosers = [chooser(replace(random_settings(), logit_bias={}, row=row), size) for row in range(64)]
        plain = [chooser(Sampling(temperature=t, row=r), size) for r in range(20) for t in (0.0, 0.7, 1.0)]
        rows = [*choosers, *plain]
        logits = RANDOM.normal(scale=3, size=(len(rows), size + 5)).astype(np.float32)  # a padded head
        positions = RANDOM.integers(100, size=len(rows)).tolist()
        alone = [one.choose(row, position=p) for one, row, p in zip(rows, logits, positions, strict=True)]
        assert choose_rows(logits, rows, positions) == alone
        assert choose_rows(logits[::-1], rows[::-1], positions[::-1]) == alone[::-1]
        shifted = choose_rows(logits, rows, [p + 1 for p in positions])
        assert shifted != alone  # the control: the comparison would notice other noise


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    """Beyond the first look of the sort, with many equals at its edge."""
    logits = np.round(RANDOM.normal(size=6000) * 4) / 4
    for settings in (Sampling(top_p=0.5), Sampling(top_p=0.97), Sampling(typical_p=0.5), Sampling(typical_p=0.97)):
        found = np.exp(chooser(settings, 6000).distribution(logits))
        kept = found > 0
        assert 10 < kept.sum() < 6000
        np.testing.assert_allclose(found, textbook(logits, settings), atol=1e-12)


def test_the_noise_is_that_of_the_first_version() -> None:
    """Texts of old seeds stay: drawn with logits all equal, the token is the noise itself."""
    wide = np.zeros((4, 1000))
    assert choose(wide, Sampling(seed=1), position=5).tolist() == OLD_DRAWS


OLD_DRAWS = [141, 927, 699, 876]


def test_log_probabilities_are_the_models_own() -> None:
    np.testing.assert_allclose(log_probabilities(LOGITS[0] + 7), LOGITS[0], rtol=1e-12)


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(GenerateError, match=r"no token 4.*0 to 3"):
        chooser(Sampling(logit_bias={4: 1.0}), 4)


def test_the_lowest_temperature_is_greedy() -> None:
    logits = LOGITS * 1e30
    assert choose(logits, Sampling(temperature=1e-30), position=0).tolist() == [0, 3]

"""Sampled frequencies are the textbook's, for each rule, over 50,000 draws; a broken rule is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.sampling import Chooser, Sampling, rules
from bonsaigpt.sampling import chooser as module
from tests.sampling.chi_square import fits
from tests.sampling.textbook import textbook

DRAWS = 50_000
LOGITS = np.array([2.0, -0.5, 1.2, 0.3, -1.5, 0.9, 0.0, -0.8, 1.6, -2.5], dtype=np.float32)
PROMPT, SAID = [1, 4], [0, 0, 0, 8, 2]

RULES = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.6),
    "top-k": Sampling(top_k=4),
    "top-p": Sampling(top_p=0.7),
    "min-p": Sampling(min_p=0.25),
    "typical": Sampling(typical_p=0.6),
    "repetition": Sampling(repetition_penalty=1.6),
    "frequency": Sampling(frequency_penalty=0.5),
    "presence": Sampling(presence_penalty=0.8),
    "bias": Sampling(logit_bias={3: 1.5, 0: -1.0}),
    "constraint": Sampling(),
    "all": Sampling(
        temperature=0.8, top_k=8, top_p=0.95, min_p=0.02, typical_p=0.9, repetition_penalty=1.2, presence_penalty=0.3
    ),
}


class OddTokens:
    """A constraint."""

    def allowed(self) -> np.ndarray:
        return np.arange(len(LOGITS)) % 2 == 1

    def advance(self, token: int) -> None: ...

    def is_done(self) -> bool:
        return False


def counts(name: str, draws: int) -> np.ndarray:
    one = Chooser(RULES[name], prompt=np.array(PROMPT), vocab_size=len(LOGITS))
    for token in SAID:
        one.accept(token)
    if name == "constraint":
        one.constraint, one.is_plain = OddTokens(), False
    return np.bincount([one.choose(LOGITS, position=i) for i in range(draws)], minlength=len(LOGITS))


def reference(name: str) -> np.ndarray:
    allowed = OddTokens().allowed() if name == "constraint" else None
    return np.array(textbook(LOGITS.tolist(), RULES[name], prompt=PROMPT, said=SAID, allowed=allowed))


@pytest.mark.parametrize("name", RULES)
def test_draws_follow_the_textbook(name: str) -> None:
    assert fits(counts(name, DRAWS), reference(name))


def with_settings(change: Callable[[Sampling], Sampling]) -> Callable[[pytest.MonkeyPatch], None]:
    """Cut as if other settings had been asked for."""
    whole = rules.candidates
    return lambda patch: patch.setattr(
        module, "candidates", lambda logits, s, largest: whole(logits, change(s), largest)
    )


def with_adjusted(change: Callable[[Chooser, np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    """Penalties and bias done otherwise."""

    def adjusted(self: Chooser, logits_V: np.ndarray) -> tuple[np.ndarray, float]:
        logits = change(self, logits_V.astype(np.float64))
        return logits, float(logits.max())

    return lambda patch: patch.setattr(Chooser, "_adjusted", adjusted)


def divide_all(one: Chooser, logits: np.ndarray) -> np.ndarray:
    logits[one._said] /= one.sampling.repetition_penalty  # as printed in the paper: unlikely tokens become likelier
    return logits


def reached_before(weights: np.ndarray, p: float) -> np.ndarray:
    """Top-p without the token that reaches p."""
    order = np.argsort(-weights)
    return np.sort(order[np.cumsum(weights[order]) <= p * weights.sum()])


BROKEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "noise that is not uniform": (
        "plain",
        lambda patch: patch.setattr(module, "uniform_at", lambda key, row: ((key >> 11) * 2.0**-53) ** 1.1),
    ),
    "one noise for two positions": (
        "plain",
        lambda patch: patch.setattr(module, "key", lambda seed, purpose, t: hash((seed, t % 50)) << 40),
    ),
    "temperature a little off": ("temperature", with_settings(lambda s: replace(s, temperature=0.65))),
    "k of one more": ("top-k", with_settings(lambda s: replace(s, top_k=5))),
    "p reached before the last": ("top-p", lambda patch: patch.setattr(rules, "_top_p", reached_before)),
    "min-p of the whole": ("min-p", with_settings(lambda s: replace(s, min_p=0.25 * 0.3))),
    "typical is top-p": ("typical", lambda patch: patch.setattr(rules, "_typical", rules._top_p)),
    "repetition divides all": ("repetition", with_adjusted(divide_all)),
    "frequency counts once": ("frequency", with_adjusted(lambda one, x: x - 0.5 * (one._counts > 0))),
    "presence counts each": ("presence", with_adjusted(lambda one, x: x - 0.8 * one._counts)),
    "bias of other tokens": ("bias", with_adjusted(lambda one, x: x + np.eye(len(x))[4] * 1.5 - np.eye(len(x))[1])),
    "constraint forgotten": ("constraint", with_adjusted(lambda one, x: x)),
    "no cuts": ("all", with_settings(lambda s: replace(s, top_k=None, top_p=None, min_p=None, typical_p=None))),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_rule_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, spoil = BROKEN[broken]
    spoil(monkeypatch)
    assert not fits(counts(name, 20_000), reference(name))


# ------------------------------------------------------------------------------------------------ speculation


DRAFT = LOGITS[::-1] * 0.5 + LOGITS * 0.6  # a draft that is partly right


def judged(draws: int, settings: Sampling) -> np.ndarray:
    """Tokens that came out of guesses by another distribution."""
    one = Chooser(settings, prompt=np.array(PROMPT), vocab_size=len(LOGITS))
    guesser = one.guesser()
    found = np.zeros(len(LOGITS), dtype=int)
    for i in range(draws):
        guess, probs = guesser.guess(DRAFT, position=i)
        found[one.judge(guess, probs, LOGITS, position=i)] += 1
    return found


@pytest.mark.parametrize("name", ["plain", "temperature", "top-k"])
def test_judged_guesses_follow_the_models_distribution(name: str) -> None:
    expected = np.array(textbook(LOGITS.tolist(), RULES[name]))
    assert fits(judged(DRAWS, RULES[name]), expected)
    assert not fits(judged(5_000, RULES[name]), np.array(textbook(DRAFT.tolist(), RULES[name])))


def accept_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chooser, "judge", lambda self, guess, guess_V, logits_V, *, position: guess)


def refuse_into_p(patch: pytest.MonkeyPatch) -> None:
    """A refused guess is replaced from p itself, not from what p has more than q."""
    patch.setattr(module.np, "maximum", Reduced())


class Reduced:
    """np.maximum whose difference is forgotten."""

    reduce = np.maximum.reduce

    def __call__(self, difference: np.ndarray, zero: float) -> np.ndarray:
        return np.zeros(len(difference))


def one_noise(patch: pytest.MonkeyPatch) -> None:
    """Draft, acceptance and replacement share their noise."""
    patch.setattr(module, "_noise", lambda s, position, purpose: module.uniform_at(module.key(s.seed, position), s.row))


@pytest.mark.parametrize("spoil", [accept_all, refuse_into_p, one_noise])
def test_broken_speculation_is_noticed(
    spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    assert not fits(judged(20_000, Sampling()), np.array(textbook(LOGITS.tolist(), Sampling())))

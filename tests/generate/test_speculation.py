"""Guesses: sampled texts keep their distribution, look-up keeps the very text, agreement is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Request, Session
from bonsaigpt.generate.context import Context
from bonsaigpt.generate.speculation import LookupDraft, ModelDraft
from bonsaigpt.sampling import Chooser, Sampling
from tests.generate.pretend import Pretend, pretend_logits
from tests.sampling.chi_square import fits
from tests.sampling.textbook import textbook

PROMPT = [1, 2, 0]
SMALL = {"block_size": 12, "vocab_size": 3}
RULES = Sampling(temperature=0.7, presence_penalty=0.4)


def texts(count: int) -> tuple[np.ndarray, Session]:
    """How often each text of three tokens came out, as a flat array of 27."""
    draft = ModelDraft(Pretend(rows=8, noise=3.0, **SMALL), count=2)
    session = Session(Pretend(rows=8, **SMALL), vocab_size=3, draft=draft)
    requests = [Request(prompt=PROMPT, max_tokens=4, sampling=replace(RULES, seed=seed)) for seed in range(count)]
    found = np.zeros(27, dtype=int)
    for done in session.run(requests):
        found[np.ravel_multi_index(tuple(done.tokens[:3]), (3, 3, 3))] += 1
    return found, session


def expected() -> np.ndarray:
    """Their probabilities by the chain rule."""
    probs = np.zeros((3, 3, 3))
    for a, b, c in np.ndindex(3, 3, 3):
        first = textbook(pretend_logits(PROMPT, 3).tolist(), RULES, prompt=PROMPT)
        second = textbook(pretend_logits([*PROMPT, a], 3).tolist(), RULES, prompt=PROMPT, said=[a])
        third = textbook(pretend_logits([*PROMPT, a, b], 3).tolist(), RULES, prompt=PROMPT, said=[a, b])
        probs[a, b, c] = first[a] * second[b] * third[c]
    return probs.reshape(-1)


def test_texts_of_a_drafted_session_follow_the_models_distribution() -> None:
    found, session = texts(6000)
    assert fits(found, expected())
    assert 0.4 < session.speculation.agreement < 0.95  # a draft that was always right would prove nothing
    assert session.speculation.tokens_a_round > 1.4


def test_a_session_that_takes_guesses_unseen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chooser, "judge", lambda self, guess, guess_V, logits_V, *, position: guess)
    found, _ = texts(2000)
    assert not fits(found, expected())


def test_a_perfect_draft_is_always_right_and_saves_passes() -> None:
    decoder = Pretend(rows=1)
    session = Session(decoder, vocab_size=17, draft=ModelDraft(Pretend(rows=1), count=3))
    session.run([Request(prompt=[1, 2], max_tokens=17, sampling=Sampling(seed=4))])
    assert session.speculation.agreement == 1.0
    assert session.speculation.tokens_a_round == 4.0
    assert decoder.passes == 1 + 4  # the prompt, then four tokens a pass


def test_look_up_finds_what_followed_the_last_words() -> None:
    chooser = Chooser(Sampling(), prompt=np.array([0]), vocab_size=9)

    def guessed(tokens: list[int], most: int = 9) -> list[int]:
        context = Context(0, tokens, block=64, slide=8)
        return [token for token, _ in LookupDraft(length=2, count=3).guess(context, chooser, most)]

    assert guessed([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5]
    assert guessed([1, 2, 3, 1, 2, 4, 1, 2]) == [4, 1, 2]  # the latest place
    assert guessed([1, 2, 3, 4, 5, 1, 2], most=1) == [3]
    assert guessed([7, 7, 7]) == [7]
    assert guessed([1, 2, 3]) == []
    assert guessed([1]) == []


@pytest.mark.parametrize("bad", [{"count": 0}, {"length": 0}])
def test_drafts_that_cannot_be(bad: dict) -> None:
    with pytest.raises(GenerateError, match="use 1 or more"):
        LookupDraft(**bad)

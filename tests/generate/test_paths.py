"""Every way to decode gives the same greedy text as the uncached oracle: 200 random prompts over the block variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.generate import Completion, Request, Session, generate
from bonsaigpt.generate.reference import generate_uncached
from bonsaigpt.generate.speculation import LookupDraft, ModelDraft
from bonsaigpt.sampling import Sampling
from bonsaigpt.torch_engine.model import GPT
from tests.generate.test_session import ENGINE, lively
from tests.torch_engine.variants import VARIANTS

TOKENIZER = CharTokenizer("abcdefghijklmnopq")
GREEDY = Sampling(temperature=0)
PROMPTS = -(-200 // len(VARIANTS))
TOKENS = 14  # many contexts slide once or more


def batched(model: GPT, requests: list[Request]) -> list[list[int]]:
    """All at once, a row for each."""
    return tokens_of(Session(ENGINE.decoder(model, rows=len(requests)), TOKENIZER).run(requests))


def continuous(model: GPT, requests: list[Request]) -> list[list[int]]:
    """Few rows, which are filled again as texts of several lengths end."""
    decoder = ENGINE.decoder(model, rows=3)
    shorter = [replace(request, max_tokens=TOKENS - i % 9) for i, request in enumerate(requests)]
    return tokens_of(Session(decoder, TOKENIZER).run(shorter))


def looked_up(model: GPT, requests: list[Request]) -> list[list[int]]:
    """Guesses from the text itself."""
    session = Session(ENGINE.decoder(model, rows=4), TOKENIZER, draft=LookupDraft(length=1, count=3))
    found = tokens_of(session.run(requests))
    assert session.speculation.guessed > session.speculation.right > 0
    return found


def drafted(model: GPT, requests: list[Request]) -> list[list[int]]:
    """Guesses by another model."""
    draft = ModelDraft(ENGINE.decoder(lively("gpt2", n_layer=1), rows=4), count=3)
    session = Session(ENGINE.decoder(model, rows=4), TOKENIZER, draft=draft)
    found = tokens_of(session.run(requests))
    assert session.speculation.guessed > 0
    return found


def drafted_by_itself(model: GPT, requests: list[Request]) -> list[list[int]]:
    """Guesses by the model, all of which stand."""
    draft = ModelDraft(ENGINE.decoder(model, rows=4), count=3)
    session = Session(ENGINE.decoder(model, rows=4), TOKENIZER, draft=draft)
    found = tokens_of(session.run(requests))
    assert session.speculation.agreement > 0.99
    return found


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [done.tokens for done in completions]


PATHS: list[Callable[[GPT, list[Request]], list[list[int]]]] = [
    batched,
    continuous,
    looked_up,
    drafted,
    drafted_by_itself,
]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_path_is_the_oracles(name: str) -> None:
    model = lively(name)
    chance = np.random.default_rng(len(name))
    prompts = [chance.integers(17, size=chance.integers(1, 30)) for _ in range(PROMPTS)]
    oracle = [
        np.concatenate(list(generate_uncached(ENGINE, model, prompt[None], tokens=TOKENS, sampling=GREEDY))).tolist()
        for prompt in prompts
    ]
    assert len({tuple(text) for text in oracle}) >= PROMPTS / 2  # the model does not say one thing only
    requests = [Request(prompt=prompt.tolist(), max_tokens=TOKENS, sampling=GREEDY) for prompt in prompts]
    for path in PATHS:
        found = path(model, requests)
        assert found == [text[: len(made)] for text, made in zip(oracle, found, strict=True)], path.__name__
        assert min(len(made) for made in found) >= TOKENS - 8


def test_the_comparison_notices_a_guess_that_is_taken_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    from bonsaigpt.sampling import Chooser

    model = lively("gpt2")
    prompt = np.array([[1, 2, 3]])
    oracle = np.concatenate(list(generate_uncached(ENGINE, model, prompt, tokens=TOKENS, sampling=GREEDY))).tolist()
    request = Request(prompt=[1, 2, 3], max_tokens=TOKENS, sampling=GREEDY)
    assert drafted(model, [request]) == [oracle]
    monkeypatch.setattr(Chooser, "judge", lambda self, guess, guess_V, logits_V, *, position: guess)
    assert drafted(model, [request]) != [oracle]


def test_rows_of_generate_may_be_more_than_a_session_has_at_once() -> None:
    model = lively("rope")
    many = np.random.default_rng(0).integers(17, size=(40, 5))
    found = np.stack(list(generate(ENGINE, model, many, tokens=4, sampling=Sampling(seed=3))), axis=1)
    oracle = np.stack(list(generate_uncached(ENGINE, model, many, tokens=4, sampling=Sampling(seed=3))), axis=1)
    assert found.tolist() == oracle.tolist()

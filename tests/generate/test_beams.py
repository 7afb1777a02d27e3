"""Beam search against all texts there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Request, Session, best_first
from bonsaigpt.generate.beams import beam_search
from bonsaigpt.sampling import Sampling, log_probabilities
from tests.generate.pretend import Pretend, pretend_logits

TOKENIZER = CharTokenizer("abcd")
PROMPT = [1, 2]


def score(tokens: tuple[int, ...]) -> float:
    """Log-probability of a text after the prompt."""
    return sum(
        float(log_probabilities(pretend_logits([*PROMPT, *tokens[:i]], 4))[token]) for i, token in enumerate(tokens)
    )


def search(rows: int, tokens: int, **request: object) -> list[tuple[int, ...]]:
    penalty = request.pop("length_penalty", 1.0)
    asked = Request(prompt=PROMPT, max_tokens=tokens, **request)  # type: ignore[arg-type]
    found = beam_search(Pretend(rows=rows, vocab_size=4), TOKENIZER, asked, length_penalty=float(penalty))  # type: ignore[arg-type]
    return [tuple(done.tokens) for done in found]


def test_enough_beams_find_the_best_of_all_texts() -> None:
    best = sorted(product(range(4), repeat=4), key=lambda text: -score(text))
    assert search(64, 4) == best[:64]
    assert search(2, 8)[0] != search(1, 8)[0]  # two find what the greedy text misses


def test_one_beam_is_greedy() -> None:
    greedy = Request(prompt=PROMPT, max_tokens=12, sampling=Sampling(temperature=0))
    [done] = Session(Pretend(rows=1, vocab_size=4), TOKENIZER).run([greedy])
    assert search(1, 12) == [tuple(done.tokens)]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_texts_that_end_are_ranked_by_length(penalty: float) -> None:
    """With a token that ends, all texts are those that end with it, and those of full length without it."""
    texts = [t for n in (1, 2, 3, 4) for t in product(range(4), repeat=n) if 3 not in t[:-1] and (t[-1] == 3 or n == 4)]
    best = sorted(texts, key=lambda text: -score(text) / len(text) ** penalty)
    found = search(150, 4, stop_tokens=[3], length_penalty=penalty)
    assert found[:10] == best[:10]


def test_stop_strings_end_a_beam_and_are_not_shown() -> None:
    request = Request(prompt=PROMPT, max_tokens=6, stop=["ab"])
    found = beam_search(Pretend(rows=40, vocab_size=4), TOKENIZER, request)
    ended = [done for done in found if done.finish == "stop_string"]
    assert ended
    assert all(TOKENIZER.decode(done.tokens) == done.text + "ab" for done in ended)
    assert all("ab" not in done.text for done in found)


def test_past_the_block_every_beam_slides() -> None:
    assert all(len(text) == 40 for text in search(4, 40))
    with pytest.raises(GenerateError, match="block of 24"):
        search(4, 40, overflow="error")


def test_what_beams_cannot_do_is_refused() -> None:
    with pytest.raises(GenerateError, match="rules of sampling"):
        search(2, 3, sampling=Sampling(top_k=2))
    with pytest.raises(GenerateError, match="log-probabilities"):
        search(2, 3, logprobs=1)
    with pytest.raises(GenerateError, match="length penalty"):
        search(2, 3, length_penalty=float("nan"))


def test_best_of_several_is_the_likeliest_by_the_models_own_mean() -> None:
    requests = [Request(prompt=PROMPT, max_tokens=5, sampling=Sampling(seed=i, top_k=3), logprobs=0) for i in range(9)]
    found = best_first(Session(Pretend(rows=4, vocab_size=4), TOKENIZER).run(requests))
    means = [score(tuple(done.tokens)) / 5 for done in found]
    np.testing.assert_allclose([done.mean_logprob for done in found], means, rtol=1e-9)
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]

"""What goes wrong with one request is that request's: its neighbours and the session go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Completion, Event, Request, Session, best_first
from bonsaigpt.generate.requests import LogProb
from bonsaigpt.generate.speculation import ModelDraft
from bonsaigpt.sampling import Sampling
from tests.generate.pretend import Pretend


class Diverging(Pretend):
    """Logits are no numbers after token 5."""

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        logits = super().verify(row, tokens)
        logits[tokens == 5] = np.nan
        return logits


def request(*prompt: int, **options: Any) -> Request:
    return Request(prompt=prompt, max_tokens=6, **options)


def drain(session: Session) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for _ in range(100):
        for event in session.step():
            found.setdefault(event.request, []).append(event)
        if not session.busy:
            return found
    raise AssertionError("the session never ends")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (request(1, sampling=Sampling(logit_bias={999: 1.0})), "no token 999 to bias"),
        (request(70), "outside the vocabulary of 17"),
        (request(-1), "outside the vocabulary of 17"),
    ],
)
def test_what_can_never_be_met_is_refused_when_it_is_added(bad: Request, words: str) -> None:
    session = Session(Pretend(rows=2))
    session.add(request(1))
    with pytest.raises(GenerateError, match=words):
        session.add(bad)
    assert session.add(request(2)) == 1
    assert {number: events[-1].finish for number, events in drain(session).items()} == {0: "length", 1: "length"}


@pytest.mark.parametrize("drafted", [False, True])
def test_a_failure_ends_its_own_request_alone(drafted: bool) -> None:
    healthy = Sampling(temperature=0, logit_bias={5: -100.0})
    wanted = [token_list(request(prompt, sampling=healthy), Pretend(rows=1)) for prompt in (1, 2, 3)]
    draft = ModelDraft(Pretend(rows=4), count=2) if drafted else None
    session = Session(Diverging(rows=4), draft=draft)
    numbers = [session.add(request(prompt, sampling=healthy)) for prompt in (1, 2)]
    diverging = session.add(request(4, sampling=Sampling(temperature=0, logit_bias={5: 100.0})))
    overflowing = session.add(request(4, sampling=Sampling(repetition_penalty=5e-324)))
    numbers.append(session.add(request(3, sampling=healthy)))  # waits for a row
    found = drain(session)
    assert [[event.token for event in found[number]] for number in numbers] == wanted
    assert "not finite" in str(found[diverging][-1].error)
    assert "infinity" in str(found[overflowing][-1].error)
    assert {found[number][-1].finish for number in (diverging, overflowing)} == {"failed"}
    session.add(request(1, sampling=healthy))
    [again] = drain(session).values()
    assert [event.token for event in again] == wanted[0], "the rows are as good as new"


def token_list(asked: Request, decoder: Any) -> list[int]:
    return Session(decoder).run([asked])[0].tokens


def test_whoever_runs_to_the_end_is_told_by_an_exception() -> None:
    with pytest.raises(GenerateError, match="not finite"):
        Session(Diverging(rows=1)).run([request(5)])


def test_a_text_without_a_token_is_not_the_best_of_n() -> None:
    empty, said = Completion(0), Completion(1, tokens=[1], logprobs=[LogProb(1, -3.0)])
    assert empty.mean_logprob is None
    assert best_first([empty, said]) == [said, empty]


def test_a_session_with_a_tokenizer_refuses_ids_without_a_text() -> None:
    session = Session(Pretend(rows=1, vocab_size=300), ByteTokenizer())
    with pytest.raises(GenerateError, match=f"outside the vocabulary of {ByteTokenizer().vocab_size}"):
        session.add(request(299))

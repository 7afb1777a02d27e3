"""A thousand random requests through one session: each is what it would be alone, and what the oracle says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import CharTokenizer
from bonsaigpt.engines import Decoder
from bonsaigpt.generate import Completion, Event, Request, Session
from bonsaigpt.generate.context import check_lengths, context_start
from bonsaigpt.generate.speculation import Draft, LookupDraft, ModelDraft
from bonsaigpt.sampling import Chooser, Sampling
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import build
from tests.generate.pretend import Pretend, pretend_logits
from tests.torch_engine.variants import variant

TOKENIZER = CharTokenizer("abcdefghijklmnopq")


def random_request(chance: np.random.Generator) -> Request:
    """Any settings together."""
    maybe = lambda p: chance.random() < p  # noqa: E731
    words = [TOKENIZER.decode(chance.integers(17, size=chance.integers(1, 4))) for _ in range(chance.integers(3))]
    prompt = chance.integers(17, size=chance.integers(1, 40)).tolist()
    tokens = int(chance.integers(0, 25))
    return Request(
        prompt=prompt,
        max_tokens=tokens,
        sampling=Sampling(
            temperature=float(chance.choice([0.0, 0.7, 1.0])),
            top_k=int(chance.integers(1, 17)) if maybe(0.3) else None,
            top_p=float(chance.uniform(0.2, 1)) if maybe(0.3) else None,
            min_p=float(chance.uniform(0.01, 0.3)) if maybe(0.2) else None,
            typical_p=float(chance.uniform(0.3, 1)) if maybe(0.2) else None,
            repetition_penalty=1.3 if maybe(0.3) else 1.0,
            frequency_penalty=0.3 if maybe(0.2) else 0.0,
            presence_penalty=0.5 if maybe(0.2) else 0.0,
            logit_bias={3: 1.0, 5: -2.0} if maybe(0.2) else {},
            seed=int(chance.integers(50)),
            row=int(chance.integers(3)),
        ),
        stop=words if maybe(0.5) else [],
        stop_tokens=[int(chance.integers(17))] if maybe(0.2) else [],
        logprobs=int(chance.integers(4)) if maybe(0.3) else None,
        overflow="error" if len(prompt) + tokens <= 24 and maybe(0.5) else "slide",
        slide=int(chance.integers(1, 25)) if maybe(0.4) else None,
    )


def through_one_session(
    requests: list[Request], decoder: Decoder, chance: np.random.Generator, *, draft: Draft | None = None
) -> list[Completion]:
    """Requests come at random moments; some prompts come twice."""
    session, waiting = Session(decoder, TOKENIZER, draft=draft), list(enumerate(requests))
    found: dict[int, Completion] = {}
    ended: set[int] = set()
    while waiting or session.busy:
        for _ in range(min(len(waiting), chance.integers(0, 4))):
            index, request = waiting.pop(0)
            assert session.add(request) == index
            found[index] = Completion(index)
        for event in session.step():
            assert event.request not in ended, "an event after the last one"
            found[event.request].take(event)
            if event.finish is not None:
                ended.add(event.request)
    assert len(ended) == len(requests)
    return [found[i] for i in range(len(requests))]


def alone(request: Request, decoder: Decoder) -> Completion:
    [done] = Session(decoder, TOKENIZER).run([request])
    return replace(done, request=0)


def by_the_oracle(request: Request) -> list[int]:
    """The tokens without sessions, caches or stops; of the pretended model."""
    slide = check_lengths(len(request.prompt), request.max_tokens, 24, request.overflow, request.slide)
    seen = list(request.prompt)
    chooser = Chooser(request.sampling, prompt=np.array(seen), vocab_size=17)
    for _ in range(request.max_tokens):
        logits = pretend_logits(seen[context_start(len(seen), 24, slide) :], 17)
        seen.append(chooser.choose(logits, position=len(seen)))
        chooser.accept(seen[-1])
    return seen[len(request.prompt) :]


def requests(count: int, seed: int) -> list[Request]:
    chance = np.random.default_rng(seed)
    made: list[Request] = []
    for _ in range(count):
        made.append(random_request(chance))
        if len(made) > 1 and chance.random() < 0.2:  # the prompt of another, which may be at work still
            made[-1] = replace(made[-1], prompt=made[-2].prompt, overflow="slide", slide=made[-2].slide)
    return made


def test_a_thousand_requests_are_what_each_is_alone_and_by_the_oracle() -> None:
    asked = requests(1000, seed=1)
    found = through_one_session(asked, Pretend(rows=7), np.random.default_rng(2))
    finishes = set()
    for request, done in zip(asked, found, strict=True):
        assert replace(done, request=0) == alone(request, Pretend(rows=1))
        assert done.tokens == by_the_oracle(request)[: len(done.tokens)]
        assert (len(done.tokens) == request.max_tokens) or done.finish != "length"
        assert not any(stop in done.text for stop in request.stop)
        finishes.add(done.finish)
    assert finishes == {"length", "stop_string", "stop_token"}


def test_the_comparison_notices_rows_that_are_mixed_up() -> None:
    class MixedUp(Pretend):
        def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            return super().step(rows, tokens)[::-1]

    asked = requests(60, seed=1)
    found = through_one_session(asked, MixedUp(rows=7), np.random.default_rng(2))
    assert [replace(f, request=0) for f in found] != [alone(r, Pretend(rows=1)) for r in asked]


@pytest.mark.parametrize("kind", ["look-up", "model"])
def test_with_guesses_the_greedy_and_looked_up_texts_are_the_same(kind: str) -> None:
    asked = requests(300, seed=3)
    if kind == "model":  # its sampled texts are others of the same distribution: see test_speculation.py
        asked = [replace(r, sampling=replace(r.sampling, temperature=0.0)) for r in asked]
    draft = LookupDraft(length=1, count=3) if kind == "look-up" else ModelDraft(Pretend(rows=5, noise=1.0), count=3)
    found = through_one_session(asked, Pretend(rows=5), np.random.default_rng(2), draft=draft)
    for request, done in zip(asked, found, strict=True):
        assert replace(done, request=0) == alone(request, Pretend(rows=1))


def real_requests(count: int) -> None:
    engine = TorchEngine(device="cpu")
    model = build(variant("modern", n_layer=1), seed=2).eval()
    for parameter in model.parameters():
        parameter.data.mul_(6)
    asked = requests(count, seed=4)
    found = through_one_session(asked, engine.decoder(model, rows=6), np.random.default_rng(2))
    one = engine.decoder(model, rows=1)
    for request, done in zip(asked, found, strict=True):
        expected = alone(request, one)
        assert (done.tokens, done.text, done.finish) == (expected.tokens, expected.text, expected.finish)
        for here, there in zip(done.logprobs, expected.logprobs, strict=True):
            assert here.logprob == pytest.approx(there.logprob, abs=1e-4)


def test_a_hundred_requests_to_a_real_model() -> None:
    real_requests(100)


@pytest.mark.slow
def test_a_thousand_requests_to_a_real_model() -> None:
    real_requests(1000)


class Repeats:
    """A pattern without a library: so many times token 3, then any number of times token 4."""

    def __init__(self, count: int, *, dead: bool = False) -> None:
        self.count, self.dead = count, dead

    def start(self) -> Repeats:
        return Repeats(self.count, dead=self.dead)

    def allowed(self) -> np.ndarray:
        return np.arange(17) == (3 if self.count else 17 if self.dead else 4)

    def advance(self, token: int) -> None:
        assert self.allowed()[token]
        self.count -= token == 3

    def is_done(self) -> bool:
        return self.count == 0 and not self.dead


def test_a_pattern_ends_a_text_where_the_model_leaves_it() -> None:
    def ask(pattern: Repeats, tokens: int) -> Request:
        return Request(prompt=[1], max_tokens=tokens, pattern=pattern, logprobs=0)  # type: ignore[arg-type]

    asked = [ask(Repeats(3), 9), ask(Repeats(5), 4), ask(Repeats(2, dead=True), 9), ask(Repeats(4), 4)]
    for draft in (None, LookupDraft(length=1), ModelDraft(Pretend(rows=3, noise=1.0))):
        found = Session(Pretend(rows=3), TOKENIZER, draft=draft).run(asked)
        assert [done.finish for done in found] == ["complete", "incomplete", "stuck", "length"]
        assert found[0].tokens[:3] == [3, 3, 3]
        assert set(found[0].tokens[3:]) <= {4}
        assert [len(done.tokens) for done in found[1:]] == [4, 2, 4]
        assert all(len(done.logprobs) == len(done.tokens) for done in found)  # none for the token that was not taken
        assert found[0].text == TOKENIZER.decode(found[0].tokens)


def test_cancelled_requests_end_and_disturb_nobody() -> None:
    asked = [
        replace(random_request(np.random.default_rng(i)), max_tokens=20, stop=[], stop_tokens=[]) for i in range(5)
    ]
    session = Session(Pretend(rows=2), TOKENIZER)
    numbers = [session.add(request) for request in asked]
    events: list[Event] = []
    for _ in range(3):
        events += session.step()
    session.cancel(numbers[1])  # at work
    session.cancel(numbers[3])  # in the queue
    while session.busy:
        events += session.step()
    session.cancel(numbers[0])  # has ended: nothing happens
    assert not session.busy
    ends = {event.request: event.finish for event in events if event.finish}
    assert ends == {0: "length", 1: "cancelled", 2: "length", 3: "cancelled", 4: "length"}
    for number in (0, 2, 4):
        tokens = [event.token for event in events if event.request == number]
        assert tokens == alone(asked[number], Pretend(rows=1)).tokens


def test_the_same_prompt_is_read_once() -> None:
    decoder = Pretend(rows=4)
    request = Request(prompt=list(range(12)), max_tokens=3)
    found = Session(decoder, TOKENIZER).run([replace(request, sampling=Sampling(row=row)) for row in range(10)])
    assert decoder.read == 12 + 10 * 2  # the last token of a text is never read
    for row, done in enumerate(found):
        assert done.tokens == alone(replace(request, sampling=Sampling(row=row)), Pretend(rows=1)).tokens


def test_a_text_that_goes_on_is_not_read_again_if_the_session_may_reuse_it() -> None:
    for reuse, read in ((True, 14 + 6), (False, 14 + 20)):
        decoder = Pretend(rows=1)
        session = Session(decoder, TOKENIZER, reuse=reuse)
        [first] = session.run([Request(prompt=list(range(10)), max_tokens=5)])
        before = decoder.read
        assert before == 14
        more = Request(prompt=[*range(10), *first.tokens, 1, 2, 3, 4, 5], max_tokens=1)
        [second] = session.run([more])
        assert decoder.read == read
        assert second.tokens == alone(more, Pretend(rows=1)).tokens

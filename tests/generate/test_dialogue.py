"""A dialogue: what the model reads, what it reads again, and where an answer ends."""

from __future__ import annotations

import pytest

from bonsaigpt.data.tokenizers import ByteTokenizer, CharTokenizer
from bonsaigpt.errors import GenerateError, TokenizerError
from bonsaigpt.generate import Request, Session
from bonsaigpt.generate.dialogue import Dialogue, Template
from bonsaigpt.sampling import Sampling
from tests.generate.pretend import Pretend

LETTERS = CharTokenizer("abcdefgh:\n U")
TEMPLATE = Template(user="U: ", assistant="a: ")


def dialogue(tokens: int = 6, *, template: Template = TEMPLATE) -> tuple[Dialogue, Pretend]:
    decoder = Pretend(rows=1, block_size=256, vocab_size=LETTERS.vocab_size)
    session = Session(decoder, LETTERS, reuse=True)
    return Dialogue(session, LETTERS, Request(prompt=[], max_tokens=tokens), template), decoder


def text_of(decoder: Pretend) -> str:
    return LETTERS.decode(decoder.held[0])


def test_the_history_is_read_once() -> None:
    talk, decoder = dialogue()
    first = "".join(event.piece for event in talk.say("bad"))
    assert text_of(decoder)[: len("U: bad\na: ")] == "U: bad\na: "
    before = decoder.read
    second = "".join(event.piece for event in talk.say("face"))
    written = f"U: bad\na: {first}\nU: face\na: {second}"
    assert text_of(decoder) == written[:-1]  # the last token of an answer is never read
    assert decoder.read - before <= len(f"{second}\nU: face\na: ") + 1


def test_retry_answers_the_same_turn_with_other_noise_and_reset_forgets() -> None:
    talk, decoder = dialogue(12)
    first = "".join(event.piece for event in talk.say("bad"))
    second = "".join(event.piece for event in talk.retry())
    assert second != first
    list(talk.say("cab"))
    assert text_of(decoder).startswith(f"U: bad\na: {second}\nU: cab\na: ".replace("\n\n", "\n"))
    talk.reset()
    assert "".join(event.piece for event in talk.say("bad")) == first
    talk.reset()
    with pytest.raises(GenerateError, match="nothing was said"):
        talk.retry()


def test_an_answer_that_is_left_stays_as_far_as_it_came() -> None:
    talk, decoder = dialogue(40)
    answer = talk.say("bad")
    said = "".join(next(answer).piece for _ in range(3))
    answer.close()
    list(talk.say("cab"))
    assert text_of(decoder).startswith(f"U: bad\na: {said}\nU: cab\na: ".replace("\n\n", "\n"))


def test_an_answer_ends_where_the_users_turn_would_begin() -> None:
    assert TEMPLATE.stop == "\nU:"
    assert Template(end="<end>").stop == "<end>"
    bytes_ = ByteTokenizer()
    decoder = Pretend(rows=1, block_size=400, vocab_size=257)
    bias = dict.fromkeys(b"\nU:", 30.0)
    request = Request(prompt=[], max_tokens=300, sampling=Sampling(logit_bias=bias))
    talk = Dialogue(Session(decoder, bytes_, reuse=True), bytes_, request, TEMPLATE)
    events = list(talk.say("x"))
    assert events[-1].finish == "stop_string"
    assert "\nU:" not in "".join(event.piece for event in events)


def test_unknown_characters_leave_the_dialogue_as_it_was() -> None:
    talk, _ = dialogue()
    list(talk.say("bad"))
    history = talk._history
    with pytest.raises(TokenizerError, match="'é'"):
        talk.say("é")
    assert talk._history == history
    with pytest.raises(GenerateError, match=r"roles cannot be written.*'s'.*Choose others"):
        dialogue(template=Template(user="User: "))
    with pytest.raises(GenerateError, match="needs a role"):
        dialogue(template=Template(user="", end=""))

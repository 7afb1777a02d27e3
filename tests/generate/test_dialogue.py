"""A dialogue: what the model reads, what it reads again, and where an answer ends."""

from __future__ import annotations

import pytest

from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer
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


def test_a_turn_that_does_not_fit_leaves_the_dialogue_as_it_was() -> None:
    decoder = Pretend(rows=1, block_size=24, vocab_size=LETTERS.vocab_size)
    request = Request(prompt=[], max_tokens=6, overflow="error")
    talk = Dialogue(Session(decoder, LETTERS, reuse=True), LETTERS, request, TEMPLATE)
    first = "".join(event.piece for event in talk.say("bad"))
    with pytest.raises(GenerateError, match="do not fit"):
        talk.say("abcdefgh" * 3)
    assert "".join(event.piece for event in talk.retry()) != first, "the last turn is the one that was answered"


def test_the_history_is_in_the_tokens_that_the_model_chose() -> None:
    """Its answer encoded again may be other tokens, which the cache does not hold."""
    tokenizer = BpeTokenizer.train(["abab abab baba cab " * 30], vocab_size=270)
    decoder = Pretend(rows=1, block_size=256, vocab_size=tokenizer.vocab_size)
    bias = {token: 9.0 for token in range(256) if tokenizer.decode_bytes([token]) in (b"a", b"b")}  # letter by letter
    request = Request(prompt=[], max_tokens=8, sampling=Sampling(logit_bias=bias))
    talk = Dialogue(Session(decoder, tokenizer, reuse=True), tokenizer, request, TEMPLATE)
    chosen = [event.token for event in talk.say("bad")]
    assert chosen != tokenizer.encode(tokenizer.decode([t for t in chosen if t is not None])).tolist()
    before = decoder.read
    list(talk.say("cab"))
    assert decoder.read - before <= 8 + len(tokenizer.encode("\nU: cab\na: ").tolist())


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_tokens_that_end_within_a_character_are_encoded_again(cut: int) -> None:
    tokenizer = ByteTokenizer()
    decoder = Pretend(rows=1, block_size=64, vocab_size=tokenizer.vocab_size)
    talk = Dialogue(Session(decoder, tokenizer), tokenizer, Request(prompt=[], max_tokens=2), Template())
    text = "a日\n"
    chosen = tokenizer.encode(text).tolist()[: 4 - cut]
    assert tokenizer.decode(talk._tokens(text, chosen)) == text
    assert talk._tokens(text, [*chosen, 7]) == tokenizer.encode(text).tolist()

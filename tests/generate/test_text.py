"""Text as it grows: stop strings across tokens, nothing that is taken back."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer
from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Request, Session
from bonsaigpt.generate.text import TextStream
from tests.generate.pretend import Pretend


def pushed(stream: TextStream, text: str) -> list[str]:
    return [stream.push(byte) for byte in text.encode()]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(ByteTokenizer(), ["abc", "bd"])
    assert pushed(stream, "xabxab") == ["x", "", "", "abx", "", ""]
    assert pushed(stream, "c") == [""]
    assert (stream.text, stream.stopped) == ("xabx", "abc")
    assert stream.push(ord("z")) == ""
    assert stream.finish() == ""
    assert stream.text == "xabx"


@pytest.mark.parametrize("stops", [["abcd", "bc"], ["bc", "abcd"], ["abc", "c", "bc"]])
def test_borders_of_tokens_do_not_matter(stops: list[str]) -> None:
    """The stop string that is complete first ends the text, the longest of those that end together."""
    found = set()
    for borders in ([4], [3, 4], [1, 2, 3, 4], [2, 4], [1, 4]):
        stream = TextStream(ByteTokenizer(), stops)
        stream._bytes = dict(enumerate(b"abcd"[a:b] for a, b in zip([0, *borders], borders, strict=False)))
        pieces = [stream.push(token) for token in range(len(borders))] + [stream.finish()]
        assert "".join(pieces) == stream.text
        found.add((stream.text, stream.stopped))
    assert found == {("", "abc") if "abc" in stops else ("a", "bc")}


def test_the_first_stop_string_counts() -> None:
    tokenizer = BpeTokenizer.train(["one END STOP two " * 20], vocab_size=300)
    ids = tokenizer.encode("one END STOP two").tolist()
    assert len(ids) < 10  # tokens of several characters
    for stops, text, stopped in (
        (["STOP", "END"], "one ", "END"),
        (["ne END", "STOP"], "o", "ne END"),
        (["nothing"], "one END STOP two", None),
    ):
        stream = TextStream(tokenizer, stops)
        pieces = [stream.push(token) for token in ids] + [stream.finish()]
        assert "".join(pieces) == stream.text == text
        assert stream.stopped == stopped


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(ByteTokenizer(), ["stop"])
    assert pushed(stream, "a sto") == ["a", " ", "", "", ""]
    assert stream.finish() == "sto"


def test_a_stop_string_of_many_bytes_a_character() -> None:
    stream = TextStream(ByteTokenizer(), ["é🌱"])
    assert "".join(pushed(stream, "aé🌲é🌱b")) == "aé🌲"


def test_random_texts_against_python() -> None:
    chance = np.random.default_rng(0)
    tokenizer = CharTokenizer("ab")
    for _ in range(2000):
        ids = chance.integers(2, size=30).tolist()
        stops = [tokenizer.decode(chance.integers(2, size=chance.integers(1, 7))) for _ in range(3)]
        stream = TextStream(tokenizer, stops)
        pieces: list[str] = []
        for token in ids:
            pieces.append(stream.push(token))
            if stream.stopped is not None:
                break
        pieces.append(stream.finish())
        whole = tokenizer.decode(ids)
        ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
        if not ends:
            assert "".join(pieces) == whole
            continue
        seen = whole[: min(ends)]  # the text ends with the token that completes the first stop string
        assert "".join(pieces) == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_the_token_of_the_stop_is_reported_and_its_text_is_not() -> None:
    request = Request(prompt=[1], max_tokens=20)
    [free] = Session(Pretend(rows=1), CharTokenizer("abcdefghijklmnopq")).run([request])
    by_token = Request(prompt=[1], max_tokens=20, stop_tokens=[free.tokens[6]])
    [done] = Session(Pretend(rows=1), CharTokenizer("abcdefghijklmnopq")).run([by_token])
    first = free.tokens.index(free.tokens[6])
    assert done.tokens == free.tokens[: first + 1]
    assert done.text == free.text[:first]
    assert done.finish == "stop_token"


def test_requests_that_cannot_be() -> None:
    with pytest.raises(GenerateError, match="empty stop string"):
        Request(prompt=[1], max_tokens=1, stop=[""])
    with pytest.raises(GenerateError, match="ask for 0 or more"):
        Request(prompt=[1], max_tokens=1, logprobs=-1)
    with pytest.raises(GenerateError, match="need a tokenizer"):
        Session(Pretend(rows=1)).add(Request(prompt=[1], max_tokens=1, stop=["a"]))

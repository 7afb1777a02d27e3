"""Patterns over every kind of tokenizer: what may come next, when a text may end, and what cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer, open_tokenizer
from bonsaigpt.errors import DeviceError, GenerateError
from bonsaigpt.sampling import Chooser, Pattern, Sampling, json_schema, patterns, regular_expression

TEXT = "the small tree grows; a 12-year-old bonsaï 🌱 is pruned (never hurried), \"Ja\" or 'no': {1.5}. " * 9
TOKENIZERS: dict[str, Tokenizer] = {
    "chars": CharTokenizer(TEXT + "0123456789"),
    "bytes": ByteTokenizer(),
    "bpe": BpeTokenizer.train([TEXT], vocab_size=330),
}


@pytest.fixture(autouse=True)
def _library(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("llguidance", reason="llguidance is missing: pip install 'bonsaigpt[constrain]'")


def pieces(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]


def write(pattern: Pattern, tokenizer: Tokenizer, seed: int, limit: int = 60) -> tuple[str, bool]:
    """Random tokens under the pattern alone; the text, and whether it came to an end."""
    place, ids = pattern.start(), []
    chance = np.random.default_rng(seed)
    for _ in range(limit):
        options = np.flatnonzero(place.allowed())
        if len(options) == 0 or (place.is_done() and chance.random() < 0.3):
            return tokenizer.decode(ids), place.is_done()
        ids.append(int(chance.choice(options)))
        place.advance(ids[-1])
    return tokenizer.decode(ids), False


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "expression",
    ["[0-9]{2,5}", "(ja|no|tree)( [a-z]{1,3})*", "[ï🌱]{1,4}[.]", "small tree", '"[^"]{0,5}"', "(s|sm)(a|mall)?"],
)
def test_what_ends_matches(kind: str, expression: str) -> None:
    tokenizer = TOKENIZERS[kind]
    if kind == "chars" and "j" in expression:
        expression = expression.replace("ja", "Ja")
    pattern = regular_expression(expression, pieces(tokenizer))
    found = [write(pattern, tokenizer, seed) for seed in range(40)]
    ended = [text for text, whole in found if whole]
    assert len(ended) > 20
    assert all(re.fullmatch(expression, text) for text in ended)
    assert len(set(ended)) > 1 or expression == "small tree"


def test_every_token_that_goes_on_is_allowed_and_no_other() -> None:
    """Against Python's own regular expressions: a token is right if some continuation makes the text match."""
    tokenizer = TOKENIZERS["bpe"]
    place = regular_expression("(small|smart|tree) [a-z]{0,9}", pieces(tokenizer)).start()
    for token in tokenizer.encode("small "):
        place.advance(int(token))
    allowed = {pieces(tokenizer)[i].decode() for i in np.flatnonzero(place.allowed())}
    letters = {p.decode() for p in pieces(tokenizer) if p and re.fullmatch(b"[a-z]{1,9}", p)}
    assert allowed == letters
    assert any(len(word) > 1 for word in allowed)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_character_in_pieces(kind: str) -> None:
    """🌱 is four bytes: after the first only those that complete it may follow, and the text may not end."""
    tokenizer = TOKENIZERS[kind]
    alphabet = pieces(tokenizer)
    place = regular_expression("[é🌱]+", alphabet).start()
    sprout = "🌱".encode()
    for i, byte in enumerate(sprout):
        assert not place.is_done() or i == 0
        token = alphabet.index(bytes([byte]))
        assert place.allowed()[token]
        assert i == 0 or not place.allowed()[alphabet.index(b"a")]
        place.advance(token)
    assert place.is_done()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_json_that_fits_its_schema(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["elm", "fir"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
    pattern = json_schema(json.dumps(schema), pieces(tokenizer), origin="s.json")
    whole = [text for text, ended in (write(pattern, tokenizer, seed, limit=120) for seed in range(30)) if ended]
    assert len(whole) > 10
    for text in whole:
        value = json.loads(text)
        assert list(value) == ["name", "age", "kind"]
        assert len(value["name"]) <= 4
        assert 0 <= value["age"] <= 150
        assert value["kind"] in ("elm", "fir")


def test_special_tokens_are_never_allowed() -> None:
    tokenizer = TOKENIZERS["bytes"]
    place = regular_expression("(.|\n)*", pieces(tokenizer)).start()
    assert place.allowed()[ord("<")]
    assert not place.allowed()[256]


def test_gpt2s_vocabulary(shared_data: Path) -> None:
    tokenizer = open_tokenizer(shared_data / "gpt2-bpe")
    pattern = regular_expression("[A-Z][a-z]{1,4}( [a-z]{1,5}){2}[.]", pieces(tokenizer))
    ended = [text for text, whole in (write(pattern, tokenizer, seed) for seed in range(10)) if whole]
    assert ended
    assert all(re.fullmatch("[A-Z][a-z]{1,4}( [a-z]{1,5}){2}[.]", text) for text in ended)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("(ab", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("a{3,1}", "repetition"),
        ("Z+", "no token of the vocabulary can begin the pattern 'Z\\+'"),
    ],
)
def test_patterns_that_cannot_be_used(expression: str, says: str) -> None:
    with pytest.raises(GenerateError, match=says) as caught:
        regular_expression(expression, pieces(TOKENIZERS["chars"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "says"),
    [("{", "s.json is not JSON"), ('{"type": "oject"}', "oject"), ('{"type": "string", "enum": []}', "s.json")],
)
def test_schemas_that_cannot_be_used(schema: str, says: str) -> None:
    with pytest.raises(GenerateError, match=says) as caught:
        json_schema(schema, pieces(TOKENIZERS["bytes"]), origin="s.json")
    assert "\n" not in str(caught.value)


def test_where_the_pattern_is_complete_the_model_is_free_and_elsewhere_it_is_not() -> None:
    tokenizer = TOKENIZERS["bytes"]
    one = Chooser(
        Sampling(temperature=0),
        prompt=np.array([1]),
        vocab_size=257,
        constraint=regular_expression("[0-9]{2,3}", pieces(tokenizer)).start(),
    )
    wants_x = np.eye(257)[ord("x")] * 9 + np.eye(257)[ord("7")]
    for _ in range(2):  # "x" is what the model wants most, and may not have
        assert one.choose(wants_x, position=1) == ord("7")
        assert not one.leaves(ord("7"))
        one.accept(ord("7"))
    assert one.choose(wants_x, position=3) == ord("x")
    assert one.leaves(ord("x"))
    assert not one.leaves(ord("7"))


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(patterns.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match=r"pip install 'bonsaigpt\[constrain\]'"):
        regular_expression("a", [b"a"])

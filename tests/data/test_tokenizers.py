"""Tokenizers: round trips, errors that help, and GPT-2's ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.data.tokenizers import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    from_json,
    smallest_dtype,
)
from bonsaigpt.data.tokenizers.chars import closest_characters
from bonsaigpt.errors import CheckpointError, DataError, TokenizerError

TEXT = "Grüße, 世界! naïve café — “quotes”\n\tdef f(x):\r\n  return 'x' * 3  # 🌱 \x00 end"
TEXTS = [TEXT, "plain ascii text, twice: plain ascii text"]


def tokenizers() -> list[CharTokenizer | ByteTokenizer | BpeTokenizer]:
    """One of each kind."""
    return [CharTokenizer("".join(TEXTS)), ByteTokenizer(), BpeTokenizer.train(TEXTS * 5, 300)]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_round_trip_also_through_json(tokenizer) -> None:
    again = from_json(tokenizer.to_json(), origin="test")
    assert again.vocab_size == tokenizer.vocab_size
    assert again.end_of_text == tokenizer.end_of_text
    for text in [*TEXTS, ""]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert again.encode(text).tolist() == ids.tolist()
        assert ids.dtype == smallest_dtype(tokenizer.vocab_size)
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40))
def test_bytes_and_bpe_know_every_text(text: str) -> None:
    for tokenizer in (ByteTokenizer(), _BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(tokenizer.token_bytes()) == tokenizer.vocab_size


_BPE = BpeTokenizer.train(TEXTS, 280)


def test_training_is_deterministic() -> None:
    assert BpeTokenizer.train(TEXTS * 5, 300).to_json() == BpeTokenizer.train(TEXTS * 5, 300).to_json()
    assert BpeTokenizer.train(TEXTS * 5, 300).to_json() != BpeTokenizer.train(["other " * 50], 300).to_json()


def test_special_tokens_stand_for_no_bytes() -> None:
    for tokenizer in (ByteTokenizer(), _BPE):
        assert tokenizer.end_of_text is not None
        assert tokenizer.token_bytes()[tokenizer.end_of_text] == 0
        assert tokenizer.decode([tokenizer.end_of_text]) == ""


def test_text_that_looks_like_a_special_token_is_text() -> None:
    text = "a<|endoftext|>b"
    ids = _BPE.encode(text)
    assert _BPE.end_of_text not in ids
    assert _BPE.decode(ids) == text
    assert _BPE.token_bytes()[ids].sum() == len(text)
    again = from_json(_BPE.to_json(), origin="test")
    assert again.encode(text).tolist() == ids.tolist()


def test_an_unknown_character_is_named_with_the_closest_known() -> None:
    tokenizer = CharTokenizer("abcdeE '\"-\n")
    for text, words in {
        "ab’": ["'’'", "RIGHT SINGLE QUOTATION MARK", "position 2", '"\'"'],
        "é": ["LATIN SMALL LETTER E WITH ACUTE", "'e'"],
        "ab—": ["EM DASH", "'-'"],
        "A": ["LATIN CAPITAL LETTER A", "'a'"],
        "世": ["CJK UNIFIED IDEOGRAPH"],
        "\x07": ["U+0007"],
    }.items():
        with pytest.raises(TokenizerError) as caught:
            tokenizer.encode(text)
        for word in words:
            assert word in str(caught.value)


def test_closest_characters() -> None:
    assert closest_characters("“", ["'", '"', "x"])[:1] == ['"']
    assert closest_characters("Z", ["a", "z"])[:1] == ["z"]


def test_ids_of_another_tokenizer_are_refused_not_garbled() -> None:
    with pytest.raises(TokenizerError, match="token id 300"):
        ByteTokenizer().decode([65, 300])
    with pytest.raises(TokenizerError, match="token id -1"):
        ByteTokenizer().decode([-1])


def test_an_empty_alphabet_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        CharTokenizer("")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "morse"}', '{"kind": "chars"}', '{"kind": "bpe"}', "nope"])
def test_a_damaged_tokenizer_file_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"runs/x/tokenizer\.json"):
        from_json(text, origin="runs/x/tokenizer.json")


def test_smallest_dtype() -> None:
    assert [smallest_dtype(n).name for n in (2, 256, 257, 65536, 65537)] == [
        "uint8", "uint8", "uint16", "uint16", "uint32",
    ]  # fmt: skip


def test_char_encoding_equals_the_plain_loop() -> None:
    text = TEXT * 50
    tokenizer = CharTokenizer(text)
    index = {c: i for i, c in enumerate(tokenizer.characters)}
    assert tokenizer.encode(text).tolist() == [index[c] for c in text]
    assert np.array_equal(tokenizer.encode("def"), tokenizer.encode(text)[text.index("def") :][:3])

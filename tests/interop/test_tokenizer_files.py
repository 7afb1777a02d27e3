"""Our tokenizers as files of others: the ids are the same, special tokens too."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from bonsaigpt.data.tokenizers import END_OF_TEXT, CharTokenizer, from_json
from bonsaigpt.errors import CheckpointError
from bonsaigpt.interop.gguf_file import _vocabulary
from bonsaigpt.interop.tokenizer_files import tokenizer_config, tokenizer_json


def test_characters_keep_their_special_tokens() -> None:
    tokenizer = CharTokenizer("abc \n", [END_OF_TEXT, "<|yes|>"])
    theirs = Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    assert {text: theirs.token_to_id(text) for text in tokenizer.special_tokens} == tokenizer.special_tokens
    assert theirs.encode("cab\n").ids == tokenizer.encode("cab\n").tolist()
    assert theirs.encode("a<|yes|>").ids == [*tokenizer.encode("a").tolist(), tokenizer.special_tokens["<|yes|>"]]
    assert tokenizer_config(tokenizer, 8)["eos_token"] == END_OF_TEXT


def test_characters_come_back() -> None:
    """Also as the library writes the file again; what only looks alike is refused."""
    for tokenizer in (CharTokenizer("abc \n", [END_OF_TEXT, "<|yes|>"]), CharTokenizer("zyx\U0001f600")):
        written = json.dumps(tokenizer_json(tokenizer))
        for text in (written, Tokenizer.from_str(written).to_str()):
            assert from_json(text).to_json() == tokenizer.to_json()
    data = tokenizer_json(CharTokenizer("abc"))
    for part, other in (
        ("model", {"type": "WordLevel", "vocab": {"a": 0, "c": 1, "b": 2}, "unk_token": "?"}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "cat": 2}, "unk_token": "?"}),
        ("model", {"type": "WordLevel", "vocab": {"a": 0, "b": 2, "c": 3}, "unk_token": "?"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("normalizer", {"type": "Lowercase"}),
    ):
        with pytest.raises(CheckpointError, match="single characters in the order of their code points"):
            from_json(json.dumps(data | {part: other}))


@pytest.mark.parametrize(("special", "named"), [([], "no end of a text"), ([END_OF_TEXT], "no byte-level BPE")])
def test_characters_are_no_gguf(special: list[str], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        _vocabulary(CharTokenizer("abc", special), 16, origin="it")

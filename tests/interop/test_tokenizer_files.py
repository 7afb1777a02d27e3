"""Our tokenizers as files of others: the ids are the same, special tokens too."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from bonsaigpt.data.tokenizers import END_OF_TEXT, CharTokenizer
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


@pytest.mark.parametrize(("special", "named"), [([], "no end of a text"), ([END_OF_TEXT], "no byte-level BPE")])
def test_characters_are_no_gguf(special: list[str], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        _vocabulary(CharTokenizer("abc", special), 16, origin="it")

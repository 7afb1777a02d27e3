"""Our tokenizers as files that the transformers library and others read: ``tokenizer.json`` and what goes with it."""

from __future__ import annotations

import json
from typing import Any

from bonsaigpt.data.tokenizers import END_OF_TEXT, BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from bonsaigpt.data.tokenizers.chars import CHARACTERS_APART
from bonsaigpt.data.tokenizers.vocabulary import byte_alphabet
from bonsaigpt.errors import CheckpointError

__all__ = ["tokenizer_config", "tokenizer_json"]

_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """A ``tokenizer.json`` that gives the same ids. Text that merely looks like a special token is one there.

    Raises:
        CheckpointError: the tokenizer has characters that no JSON can hold.
    """
    if isinstance(tokenizer, BpeTokenizer):
        return json.loads(tokenizer.to_json())["tokenizer"]
    if isinstance(tokenizer, ByteTokenizer):
        model = {"type": "BPE", "vocab": byte_alphabet(), "merges": []}
        return _file(model, _LEVEL, _LEVEL, tokenizer.special_tokens)
    if isinstance(tokenizer, CharTokenizer):
        if lone := next((c for c in tokenizer.characters if "\ud800" <= c <= "\udfff"), None):
            raise CheckpointError(
                f"the vocabulary has half a surrogate pair, {lone!r}, which no tokenizer.json can hold"
            )
        vocabulary = {character: index for index, character in enumerate(tokenizer.characters)}
        # The unknown has no token: a character that is not in the vocabulary is an error there as it is here.
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"}
        return _file(model, CHARACTERS_APART, {"type": "Fuse"}, tokenizer.special_tokens)
    raise CheckpointError(f"a tokenizer of kind '{tokenizer.kind}' cannot be written as tokenizer.json")


def _file(
    model: dict[str, Any], before: dict[str, Any], after: dict[str, Any], special: dict[str, int]
) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags, "special": True} for text, i in special.items()],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": after,
        "model": model,
    }


def tokenizer_config(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """The ``tokenizer_config.json`` that goes with it."""
    end = END_OF_TEXT if tokenizer.end_of_text is not None else None
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }

"""Byte-pair vocabularies for tests: learned from texts that are made up, or given by their rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as HFTokenizer

from bonsaigpt.data.tokenizers import BpeTokenizer
from bonsaigpt.data.tokenizers.presplit import pre_tokenizer
from bonsaigpt.data.tokenizers.vocabulary import byte_alphabet
from tests.data import texts

MADE: dict[str, Callable[[int], str]] = {
    "Czech": texts.czech,
    "Chinese": texts.chinese,
    "Python": texts.python,
    "Unicode": texts.unicode,
}
SAMPLES = [
    "",
    "a",
    "  spaces   and\n\n\nlines ",
    "I'll we've DON'T 12345",
    "x\n",
    "\ny",
    " \n y\r\n\r\n  ",
    "é́世🌱\x00\x85\u3000",
]


def rules(tokenizer: BpeTokenizer | dict[str, Any]) -> Callable[[str], list[int]]:
    """Encoding by `tokenizers`, the library whose file form it is."""
    data = tokenizer if isinstance(tokenizer, dict) else json.loads(tokenizer.to_json())["tokenizer"]
    library = HFTokenizer.from_str(json.dumps(data))
    library.encode_special_tokens = True
    return lambda text: library.encode(text, add_special_tokens=False).ids


def trained(split: str = "gpt2", vocab_size: int = 1500, **more: Any) -> BpeTokenizer:
    """On a little of every language."""
    some = [make(60_000) for make in MADE.values()]
    return BpeTokenizer.train(some, vocab_size, split=split, **more)


def vocabulary(merges: list[tuple[str, str]], *, extra: tuple[str, ...] = (), **model: Any) -> dict[str, Any]:
    """A tokenizer.json with these merges over ASCII letters."""
    tokens = [*sorted(byte_alphabet()), *dict.fromkeys(a + b for a, b in merges), *extra]
    return {
        "version": "1.0",
        "pre_tokenizer": pre_tokenizer("gpt2"),
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [list(m) for m in merges],
            **model,
        },
    }


def border_seeing(split: str) -> dict[str, Any]:
    """Joins any two neighbours, so that the ids tell where the text was split."""
    letters = ["a", "1", ",", "'", "s", "Ġ", "Ċ", "č"]
    return vocabulary([(a, b) for a in letters for b in letters]) | {"pre_tokenizer": pre_tokenizer(split)}

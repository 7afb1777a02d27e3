"""Text to ids by merges: ``tiktoken`` where it gives the same ids, else ``tokenizers``.

Measured by ``benchmarks/tokenizers.py`` (docs/tokenizers.md has the figures): with GPT-2's vocabulary ``tiktoken`` is 3
to 6 times as fast as ``tokenizers`` on English, Czech, Chinese and Python, in one thread and in two. Both let go of
Python's lock. ``tiktoken`` takes any byte-level vocabulary that ``ranks_of`` vouches for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from bonsaigpt.data.tokenizers.base import smallest_dtype
from bonsaigpt.data.tokenizers.presplit import PATTERNS, pattern_of
from bonsaigpt.data.tokenizers.ranks import ranks_of
from bonsaigpt.data.tokenizers.vocabulary import Vocabulary

__all__ = ["Encoder", "encoder_of"]

Encoder = Callable[[str], np.ndarray]
"""Ids of a text of bounded length, in the smallest dtype; the text is valid Unicode. Safe in several threads."""


def encoder_of(data: dict[str, Any], vocabulary: Vocabulary) -> Encoder:
    """The fastest encoder that gives the ids which this ``tokenizer.json`` defines."""
    model = data["model"]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    split = pattern_of(data.get("pre_tokenizer"))
    if split and not odd and not data.get("normalizer") and not vocabulary.literal:
        ranks = ranks_of(vocabulary)
        if ranks is not None:
            return _by_rank(PATTERNS[split][1], *ranks)
    return _by_rules(data, len(vocabulary.pieces))


def _by_rank(pattern: str, ranks: dict[bytes, int], ids: np.ndarray) -> Encoder:
    import tiktoken

    # No special tokens: text that merely looks like one is text.
    encoding = tiktoken.Encoding("bonsai", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: ids[encoding.encode_to_numpy(text, disallowed_special=())]


def _by_rules(data: dict[str, Any], vocab_size: int) -> Encoder:
    from tokenizers import Tokenizer as HFTokenizer

    tokenizer = HFTokenizer.from_str(json.dumps(data))
    tokenizer.encode_special_tokens = True  # text that merely looks like one is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    dtype = smallest_dtype(vocab_size)

    def encode(text: str) -> np.ndarray:
        [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=dtype)

    return encode

"""Text to ids by merges: ``tiktoken`` where it gives the same ids, else ``tokenizers``.

``tiktoken`` takes any byte-level vocabulary that ``ranks_of`` vouches for. By ``benchmarks/tokenizer_speed.py``,
with GPT-2's (figures in docs/tokenizers.md), it is 4 to 6 times as fast as ``tokenizers`` on English, Czech, Chinese
and Python in one thread, 5 to 9 times in two. Both let go of Python's lock. Two young libraries are faster still
(fastokens, gigatoken); why they are no dependency yet is written there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bonsaigpt.data.tokenizers.base import END_OF_TEXT, smallest_dtype
from bonsaigpt.data.tokenizers.presplit import PATTERNS, pattern_of
from bonsaigpt.data.tokenizers.ranks import ranks_of
from bonsaigpt.data.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer as HFTokenizer

__all__ = ["Encoder", "encoder_of", "library_encoder", "ranked_encoder"]

Encoder = Callable[[str], np.ndarray]
"""Ids of a text of bounded length, in the smallest dtype; the text is valid Unicode. Safe in several threads."""


def encoder_of(data: dict[str, Any], vocabulary: Vocabulary) -> Encoder:
    """The fastest encoder that gives the ids which this ``tokenizer.json`` defines."""
    ranked = ranked_encoder(data, vocabulary)
    if ranked is not None:
        encoding, ids = ranked
        return lambda text: ids[encoding.encode_to_numpy(text, disallowed_special=())]
    library = library_encoder(data)
    dtype = smallest_dtype(len(vocabulary.pieces))

    def encode(text: str) -> np.ndarray:
        [encoding] = library.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, dtype=dtype)

    return encode


def ranked_encoder(data: dict[str, Any], vocabulary: Vocabulary) -> tuple[tiktoken.Encoding, np.ndarray] | None:
    """An encoding of ``tiktoken`` and the id of each of its ranks; None if it would give other ids than the file."""
    import tiktoken

    model = data["model"]
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    split = pattern_of(data.get("pre_tokenizer"))
    if not split or odd or data.get("normalizer") or vocabulary.literal:
        return None
    found = ranks_of(vocabulary)
    if found is None:
        return None
    ranks, ids = found
    # The special token is never let through: text that merely looks like one is text. But without any, tiktoken looks
    # for the empty string at each character, which takes it half as long again.
    special = {END_OF_TEXT: len(ranks)}
    pattern = PATTERNS[split][1]
    encoding = tiktoken.Encoding("bonsai", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return encoding, ids


def library_encoder(data: dict[str, Any]) -> HFTokenizer:
    """``tokenizers``' own, which knows everything that can be in the file."""
    from tokenizers import Tokenizer as HFTokenizer

    tokenizer = HFTokenizer.from_str(json.dumps(data))
    tokenizer.encode_special_tokens = True  # text that merely looks like one is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

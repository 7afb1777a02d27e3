"""Learning the merges of a byte-level BPE from a stream of texts, by Hugging Face's ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bonsaigpt.data.tokenizers.base import END_OF_TEXT
from bonsaigpt.data.tokenizers.presplit import in_pieces, pre_tokenizer
from bonsaigpt.data.tokenizers.vocabulary import byte_alphabet
from bonsaigpt.errors import DataError

__all__ = ["smallest_vocabulary", "train_merges"]

_PART = 1 << 16
"""Characters of a text that are handed over at once; the library buffers a few hundred such parts."""


def smallest_vocabulary(special: Sequence[str]) -> int:
    """The 256 bytes, the end-of-text token, and the special ones."""
    return 257 + len(special)


def train_merges(
    texts: Iterable[str], vocab_size: int, *, split: str, special: Sequence[str], train_bytes: int
) -> dict[str, Any]:
    """A ``tokenizer.json`` with learned merges; see ``BpeTokenizer.train``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

    if vocab_size < smallest_vocabulary(special):
        raise DataError(
            f"a vocabulary of {vocab_size} is too small: 256 bytes, {END_OF_TEXT} and {len(special)} special tokens "
            f"need {smallest_vocabulary(special)}, and merges come on top"
        )
    blank = {
        "version": "1.0",
        "pre_tokenizer": pre_tokenizer(split),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.model = models.BPE()
    _check_special(special, tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (END_OF_TEXT, *special)],
        initial_alphabet=sorted(byte_alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_parts(texts, train_bytes), trainer)
    return json.loads(tokenizer.to_str())


def _check_special(special: Sequence[str], tokenizer: Any) -> None:
    """A special token must be something that merges can never make."""
    if len({END_OF_TEXT, *special}) <= len(special):
        raise DataError(f"special tokens must differ from each other and from {END_OF_TEXT}: {', '.join(special)}")
    for token in special:
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(token)) < 2:
            raise DataError(
                f"the special token {token!r} could also be learned as an ordinary one: write it so that it is no "
                f"single word, e.g. '<|{token.strip() or 'name'}|>'"
            )


def _parts(texts: Iterable[str], train_bytes: int) -> Iterator[str]:
    """The texts in short parts, until there were enough bytes."""
    seen = 0
    for text in texts:
        for part in in_pieces(text, _PART):
            yield part
            seen += len(part) if part.isascii() else len(part.encode("utf-8", errors="surrogatepass"))
            if train_bytes and seen >= train_bytes:
                return

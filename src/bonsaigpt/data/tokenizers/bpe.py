"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): bytes, joined by learned merges. No text is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bonsaigpt.data.tokenizers.base import PieceTokenizer
from bonsaigpt.data.tokenizers.encoders import Encoder, encoder_of
from bonsaigpt.data.tokenizers.presplit import in_pieces
from bonsaigpt.data.tokenizers.training import train_merges
from bonsaigpt.data.tokenizers.vocabulary import read_vocabulary
from bonsaigpt.errors import TokenizerError

__all__ = ["BpeTokenizer"]


class BpeTokenizer(PieceTokenizer):
    """A byte-level vocabulary with merges, in the form of Hugging Face's ``tokenizer.json``.

    Args:
        data: what ``json.loads`` makes of a ``tokenizer.json``.
        origin: where it comes from, for messages.

    Raises:
        CheckpointError: it is no byte-level BPE, or damaged.
    """

    kind = "bpe"

    def __init__(self, data: dict[str, Any], *, origin: str = "the tokenizer") -> None:
        self._data = data
        self._vocabulary = read_vocabulary(data, origin=origin)
        self._pieces = self._vocabulary.pieces
        self.vocab_size = len(self._pieces)
        self.special_tokens = self._vocabulary.special

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        split: str = "gpt2",
        special: Sequence[str] = (),
        train_bytes: int = 0,
    ) -> BpeTokenizer:
        """Learn merges until the vocabulary has ``vocab_size`` entries; the same texts give the same merges.

        Args:
            texts: read once, as a stream; memory holds its distinct words.
            vocab_size: 256 bytes, the end-of-text token, special tokens and merges; fewer come out of little text.
            split: how text is split before merges, ``gpt2`` or ``gpt4``.
            special: tokens besides the end of a text that no text is encoded to.
            train_bytes: UTF-8 bytes of text after which it stops reading; 0 reads all.

        Raises:
            DataError: a vocabulary too small, or a special token that could be an ordinary one.
        """
        learned = train_merges(texts, vocab_size, split=split, special=special, train_bytes=train_bytes)
        return cls(learned, origin="the tokenizer that was trained")

    @cached_property
    def _encoder(self) -> Encoder:
        return encoder_of(self._data, self._vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text; a text of more than 1,048,576 characters is cut first (see ``in_pieces``)."""
        try:
            parts = [self._encoder(part) for part in in_pieces(text)]
        except (UnicodeEncodeError, TypeError):
            where = next((n for n, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            if where is None:
                raise
            raise TokenizerError(
                f"the text has half a surrogate pair ({text[where]!r}) at position {where}: it was not read as UTF-8; "
                "read it again, or leave that character out"
            ) from None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def to_json(self) -> str:
        """The kind and the ``tokenizer.json``."""
        return json.dumps({"kind": self.kind, "tokenizer": self._data})

"""Bytes as tokens: no vocabulary to learn, no text that is unknown, and sequences as long as the text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from bonsaigpt.data.tokenizers.base import END_OF_TEXT, PieceTokenizer

__all__ = ["ByteTokenizer"]


class ByteTokenizer(PieceTokenizer):
    """UTF-8 bytes as ids 0 .. 255, 256 for the end of a text, and after it further special tokens. It knows every
    text."""

    kind = "bytes"

    def __init__(self, special: Sequence[str] = ()) -> None:
        self.vocab_size = 257 + len(special)
        self._pieces = [bytes([i]) for i in range(256)] + [b""] * (1 + len(special))
        self.special_tokens = {text: 256 + n for n, text in enumerate((END_OF_TEXT, *special))}

    def encode(self, text: str) -> np.ndarray:
        """One id for each byte."""
        return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.uint16)

    def to_json(self) -> str:
        """The kind, and what special tokens there are besides the end of a text."""
        special = list(self.special_tokens)[1:]
        return json.dumps({"kind": self.kind} | ({"special": special} if special else {}))

"""Bytes as tokens: no vocabulary to learn, no text that is unknown, and sequences as long as the text."""

from __future__ import annotations

import json

import numpy as np

from bonsaigpt.data.tokenizers.base import END_OF_TEXT, PieceTokenizer

__all__ = ["ByteTokenizer"]


class ByteTokenizer(PieceTokenizer):
    """UTF-8 bytes as ids 0 .. 255, and 256 for the end of a text. It knows every text."""

    kind = "bytes"
    vocab_size = 257

    def __init__(self) -> None:
        self._pieces = [bytes([i]) for i in range(256)] + [b""]
        self.special_tokens = {END_OF_TEXT: 256}

    def encode(self, text: str) -> np.ndarray:
        """One id for each byte."""
        return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.uint16)

    def to_json(self) -> str:
        """The kind alone."""
        return json.dumps({"kind": self.kind})

"""What a tokenizer is, and what all of them share: ids that stand for bytes, and the way back to text."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from bonsaigpt.errors import TokenizerError

__all__ = ["END_OF_TEXT", "PieceTokenizer", "Tokenizer", "smallest_dtype"]

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 .. vocab_size - 1. Any of them can be pickled, and made again from its JSON."""

    @property
    def kind(self) -> str:
        """The name of the tokenizer's kind: chars, bytes or bpe."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, where the vocabulary has one."""
        ...

    @property
    def special_tokens(self) -> dict[str, int]:
        """Tokens that no text is ever encoded to, and their ids; only whoever writes token ids can put them."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, in the smallest unsigned dtype that holds the vocabulary.

        Raises:
            TokenizerError: a character outside the vocabulary, or half a surrogate pair.
        """
        ...

    def encode_documents(self, texts: Sequence[str], *, threads: int = 1) -> list[np.ndarray]:
        """``encode`` of each text, in their order; the ids never depend on ``threads``.

        With one thread everything happens in the calling one, which suits worker processes. BPE lets go of Python's
        lock while it encodes, so that threads run beside each other, ours or the caller's.
        """
        ...

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes that the ids stand for; a prefix of a text may end inside a character."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        ...

    def pieces(self) -> list[bytes]:
        """The bytes of text that each id stands for, (V,). Special tokens stand for none."""
        ...

    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for, (V,) int64. Special tokens stand for none."""
        ...

    def to_json(self) -> str:
        """Everything that ``from_json`` needs."""
        ...


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every id."""
    return np.dtype(np.min_scalar_type(vocab_size - 1))


class PieceTokenizer:
    """What all kinds share: each id stands for some bytes."""

    vocab_size: int
    special_tokens: dict[str, int]
    _pieces: list[bytes]

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Everything that ``from_json`` needs."""
        raise NotImplementedError

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, where the vocabulary has one."""
        return self.special_tokens.get(END_OF_TEXT)

    def encode_documents(self, texts: Sequence[str], *, threads: int = 1) -> list[np.ndarray]:
        """``encode`` of each text."""
        if threads == 1:
            return [self.encode(text) for text in texts]
        # Several texts to a task: what a task costs is noticed where texts are short.
        share = max(1, len(texts) // (8 * threads))
        tasks = [texts[first : first + share] for first in range(0, len(texts), share)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for done in pool.map(self.encode_documents, tasks) for ids in done]

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that the ids stand for."""
        array = np.asarray(ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            bad = int(array[(array < 0) | (array >= self.vocab_size)][0])
            raise TokenizerError(
                f"token id {bad} is outside this tokenizer's vocabulary of {self.vocab_size}: "
                "the ids come from another tokenizer"
            )
        return b"".join([self._pieces[i] for i in array.tolist()])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that the ids stand for."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def pieces(self) -> list[bytes]:
        """The bytes of each id."""
        return self._pieces

    def token_bytes(self) -> np.ndarray:
        """The number of bytes of each id."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        from bonsaigpt.data.tokenizers.opening import from_json

        return from_json, (self.to_json(),)

"""From a stream of documents to pieces of about 2 MB, and what a worker makes of a piece: an alphabet, text to learn
merges from, or token ids by split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bonsaigpt.data.corpora.source import Clean, Cursor, Document
from bonsaigpt.data.tokenizers import Tokenizer, from_json, smallest_dtype

__all__ = [
    "SEPARATOR",
    "SPLITS",
    "Alphabet",
    "Encode",
    "Encoded",
    "Learned",
    "Piece",
    "Sides",
    "Stretch",
    "Texts",
    "content_hash",
    "cut_pieces",
    "with_text",
]

SPLITS = ("train", "val")
SEPARATOR = "\n"
"""What a character model, which has no end-of-text token, sees between documents."""

_PIECE = 2 << 20
"""Characters of a piece: large against a message between processes, small against memory."""
_PIECE_DOCUMENTS = 1 << 14


@dataclass(frozen=True)
class Piece:
    """Consecutive documents; a part of a long document is a piece of its own."""

    rows: list[tuple[str, str, int, int | None]]
    """The fields of each document; plain tuples are pickled several times as fast."""
    cursor: Cursor
    """The place after it."""

    @property
    def is_rest(self) -> bool:
        """Whether it goes on with the document of the piece before."""
        return self.rows[0][2] > 0


def cut_pieces(stream: Iterable[tuple[Document, Cursor]]) -> Iterator[Piece]:
    """Pieces of a stream. Where they are cut does not show in the shards."""
    rows: list[tuple[str, str, int, int | None]] = []
    size, cursor = 0, Cursor()
    for document, after in stream:
        is_part = document.total is not None
        if rows and (is_part or size >= _PIECE or len(rows) >= _PIECE_DOCUMENTS):
            yield Piece(rows, cursor)
            rows, size = [], 0
        rows.append((document.name, document.text, document.start, document.total))
        size += len(document.text) + (_PIECE if is_part else 0)
        cursor = after
    if rows:
        yield Piece(rows, cursor)


@dataclass(frozen=True)
class Sides:
    """Which text validates: whole documents by the hash of their content, or the tail of each."""

    by: Literal["hash", "tail"]
    fraction: float
    why: str = ""
    """Why not by hash, where that is not said by the number of documents."""

    def held_out(self, hashes: np.ndarray) -> np.ndarray:
        """Whether whole documents of these content hashes validate, (n,) bool."""
        return (hashes.astype(np.float64) / 2**64 < self.fraction) & (self.by == "hash")

    def words(self) -> str:
        """For people."""
        if self.by == "hash":
            return f"whole documents whose content hash is below {self.fraction:g} validate"
        tail = f"the last {self.fraction:.0%} of each document validates"
        return f"{self.why}, so {tail}" if self.why else tail

    def tail(self, document: Document) -> int:
        """Where inside this text, which may be a part, the validating tail of the whole document begins."""
        total = len(document.text) if document.total is None else document.total
        return min(max(int(total * (1 - self.fraction)) - document.start, 0), len(document.text))


def content_hash(document: Document) -> int:
    """First 64 bits of the SHA-256 of the text; of a document in parts, of its first part."""
    digest = hashlib.sha256(document.text.encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def with_text(document: Document | None) -> bool:
    """Whether a cleaned document is there, and more than white space; a part is what the whole is."""
    return document is not None and bool(document.text) and (document.total is not None or not document.text.isspace())


def _cleaned(piece: Piece, clean: Clean) -> list[Document]:
    return [d for row in piece.rows if (d := clean(Document(*row))) is not None and with_text(d)]


def _told_apart(piece: Piece, clean: Clean, sides: Sides) -> tuple[list[Document], np.ndarray, np.ndarray]:
    """Cleaned documents, hashes by which equal ones are known (none of a rest), and whether a whole one validates."""
    documents = _cleaned(piece, clean)
    if piece.is_rest:
        return documents, np.empty(0, dtype=np.uint64), np.zeros(len(documents), dtype=bool)
    hashes = np.array([content_hash(d) for d in documents], dtype=np.uint64)
    # Long documents whose first parts are equal are the same only if they are equally long.
    return documents, hashes ^ np.array([d.total or 0 for d in documents], dtype=np.uint64), sides.held_out(hashes)


@dataclass(frozen=True)
class Alphabet:
    """Task: the distinct characters of a piece."""

    clean: Clean

    def __call__(self, piece: Piece) -> set[str]:
        return set().union(*(set(document.text) for document in _cleaned(piece, self.clean)))


@dataclass(frozen=True)
class Learned:
    """The training side of a piece as text."""

    is_rest: bool
    """It goes on with the document before, and shares its fate."""
    texts: list[str]
    hashes: np.ndarray
    """(n,) uint64, equal for equal documents; none of a rest."""
    held_out: np.ndarray
    """(n,) True where the whole document validates."""


@dataclass(frozen=True)
class Texts:
    """Task: text to learn merges from."""

    clean: Clean
    sides: Sides

    def __call__(self, piece: Piece) -> Learned:
        documents, hashes, held_out = _told_apart(piece, self.clean, self.sides)
        if self.sides.by == "hash":
            texts = [document.text for document in documents]
        else:
            texts = [document.text[: self.sides.tail(document)] for document in documents]
        return Learned(piece.is_rest, texts, hashes, held_out)


@dataclass(frozen=True)
class Stretch:
    """What a piece gives to one split: the ids of its documents one after the other, a separator before each."""

    ids: np.ndarray
    tokens: np.ndarray
    """Of each document, with its separator; 0 of one that has nothing on this side. (n,) int64, as all below."""
    starts: np.ndarray
    """1 where a document begins in this split, so that a separator is before it."""
    characters: np.ndarray
    bytes: np.ndarray
    """Of text, as UTF-8."""


@dataclass(frozen=True)
class Encoded:
    """A piece as token ids."""

    cursor: Cursor
    is_rest: bool
    """It goes on with the document before, and shares its fate."""
    hashes: np.ndarray
    """(n,) uint64, equal for equal documents; none of a rest."""
    held_out: np.ndarray
    """(n,) True where the whole document validates."""
    dropped: int
    """Documents without text, or that the source's ``clean`` gave up."""
    stretches: tuple[Stretch, Stretch]
    """For each of ``SPLITS``; of a rest, where whole documents validate, the first is for the side of the document."""


@dataclass(frozen=True)
class Encode:
    """Task: a piece as token ids."""

    clean: Clean
    sides: Sides
    tokenizer_json: str

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return from_json(self.tokenizer_json, origin="the corpus' tokenizer.json")

    @cached_property
    def _separator(self) -> np.ndarray:
        dtype = smallest_dtype(self._tokenizer.vocab_size)
        end = self._tokenizer.end_of_text
        return self._tokenizer.encode(SEPARATOR) if end is None else np.array([end], dtype=dtype)

    def __call__(self, piece: Piece) -> Encoded:
        documents, hashes, held_out = _told_apart(piece, self.clean, self.sides)
        train, val, val_starts = [], [], []
        for document, held in zip(documents, held_out.tolist(), strict=True):
            if self.sides.by == "hash":
                cut = 0 if held else len(document.text)
            else:
                cut = self.sides.tail(document)
            train.append(document.text[:cut])
            val.append(document.text[cut:])
            # The tail of a document in parts begins in one of them; those behind go on with it.
            val_starts.append(document.start == 0 or cut > 0 or self._tail_starts_with(document))
        return Encoded(
            cursor=piece.cursor,
            is_rest=piece.is_rest,
            hashes=hashes,
            held_out=held_out,
            dropped=0 if piece.is_rest else len(piece.rows) - len(documents),
            stretches=(self._stretch(train, [d.start == 0 for d in documents]), self._stretch(val, val_starts)),
        )

    def _tail_starts_with(self, document: Document) -> bool:
        return int((document.total or 0) * (1 - self.sides.fraction)) == document.start

    def _stretch(self, texts: Sequence[str], starts: Sequence[bool]) -> Stretch:
        there = [bool(text) for text in texts]
        arrays = iter(self._tokenizer.encode_documents([text for text in texts if text]))
        parts: list[np.ndarray] = []
        tokens = np.zeros(len(texts), dtype=np.int64)
        begun = np.array(starts, dtype=np.int64) * np.array(there, dtype=np.int64)
        for number, has_text in enumerate(there):
            if has_text:
                if begun[number]:
                    parts.append(self._separator)
                parts.append(next(arrays))
                tokens[number] = len(parts[-1])
        dtype = self._separator.dtype
        return Stretch(
            ids=np.concatenate(parts) if parts else np.empty(0, dtype=dtype),
            tokens=tokens + begun * len(self._separator),
            starts=begun,
            characters=np.array([len(text) for text in texts], dtype=np.int64),
            bytes=np.array([_utf8_length(text) for text in texts], dtype=np.int64),
        )


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", errors="surrogatepass"))

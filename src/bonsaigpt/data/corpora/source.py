"""What every source of text gives: its documents as a stream, in a fixed order, and a name for exactly this text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Clean", "Cursor", "Document", "Read", "Source", "Stream", "as_it_is", "identity", "reading"]


@dataclass(frozen=True, order=True)
class Cursor:
    """A place between two documents of a source: where a stream that was stopped goes on."""

    file: int = 0
    """Number of the input (a file, a shard of a data set)."""
    item: int = 0
    """Documents, and parts of documents, of that input that lie before."""
    read: int = 0
    """Bytes of the whole source that lie before, as ``Source.size`` counts them."""


@dataclass(frozen=True)
class Document:
    """A text, or a part of one that is too long to be held at once."""

    name: str
    """For messages: file, and line or title inside it."""
    text: str
    start: int = 0
    """Character of the whole document at which this part starts."""
    total: int | None = None
    """Characters of the whole document; None if ``text`` is all of it."""


class Stream(Protocol):
    """Documents from a place on."""

    def __call__(self, start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        """Each document as it is read, and the place after it."""
        ...


Clean = Callable[[Document], Document | None]
"""Turns a document as it is read into its text, or drops it. It is the slow half, it is called in other processes, and
it can be pickled."""


@dataclass(frozen=True)
class Source:
    """Documents that can be read again and again, from any place, always the same."""

    name: str
    """In words: a path, a data set."""
    identity: str
    """Hash that changes whenever the documents do."""
    size: int | None
    """Bytes to read in all; None if nobody knows."""
    stream: Stream
    clean: Clean
    note: Callable[[], str] = str
    """What a user should know of the choice of the text, in a sentence without a full stop; empty: nothing."""


def as_it_is(document: Document) -> Document:
    """The ``clean`` of a source whose text needs no work."""
    return document


def identity(*what: object) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


Read = Callable[[int], Iterable[tuple[Document, int]]]
"""The documents of one input, by its number, each with the bytes of the input that are read by then."""


def reading(inputs: int, read: Read, *, sizes: Sequence[int] | None = None) -> Stream:
    """The stream over several inputs. To go on inside one, its documents are read again and passed over.

    Args:
        inputs: how many there are.
        read: the documents of one.
        sizes: bytes of each; without them an input has as many as were read when it ends.
    """

    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        before = start.read  # bytes before the input
        for number in range(start.file, inputs):
            skip = start.item if number == start.file else 0
            position = 0
            for item, (document, position) in enumerate(read(number), start=1):
                if item == skip:
                    before = start.read - position
                if item > skip:
                    yield document, Cursor(number, item, before + position)
            before += sizes[number] if sizes else position

    return stream

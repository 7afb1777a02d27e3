"""What every source of text gives: its documents as a stream, in a fixed order, and a name for exactly this text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Cursor", "Document", "Source", "Stream", "as_it_is"]


@dataclass(frozen=True, order=True)
class Cursor:
    """A place between two documents of a source: where a stream that was stopped goes on."""

    file: int = 0
    """Number of the input (a file, a shard of a data set)."""
    item: int = 0
    """Documents, and parts of documents, of that input that lie before."""


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

    def __call__(self, start: Cursor) -> Iterator[tuple[Document, Cursor, int]]:
        """Each document as it is read, the place after it, and how many bytes of the source are read by then."""
        ...


@dataclass(frozen=True)
class Source:
    """Documents that can be read again and again, from any place, always the same."""

    name: str
    """In words: a path, a data set."""
    identity: str
    """Hash that changes whenever the documents do."""
    size: int | None
    """Bytes to read in all, as ``stream`` counts them; None if nobody knows."""
    stream: Stream
    clean: Callable[[Document], Document | None]
    """Turns a document as it is read into its text, or drops it. It is the slow half, it is called in other processes,
    and it can be pickled."""


def as_it_is(document: Document) -> Document:
    """The ``clean`` of a source whose text needs no work."""
    return document

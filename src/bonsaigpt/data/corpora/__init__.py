"""Where text comes from: one file per source, each a function from its settings to documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from bonsaigpt.config import FilesData, ShakespeareData, StdlibData, TextData
from bonsaigpt.data.corpora import files, shakespeare, stdlib
from bonsaigpt.data.corpora.document import Document
from bonsaigpt.data.corpora.source import Cursor, Source, as_it_is
from bonsaigpt.data.corpora.source import Document as Part
from bonsaigpt.data.hashes import FileHashes

__all__ = ["Document", "documents", "open_text"]


def open_text(config: TextData, *, hashes: FileHashes, download: bool = False, advance: object = None) -> Source:
    """The documents of a source as a stream."""
    found = documents(config)
    digest = hashlib.sha256()
    for document in found:
        digest.update(f"{len(document.text)}\0".encode())
        digest.update(document.text.encode("utf-8", errors="surrogatepass"))

    def stream(start: Cursor) -> Iterator[tuple[Part, Cursor]]:
        read = start.read
        for number, document in enumerate(found[start.item :], start=start.item + 1):
            read += len(document.text)
            yield Part(document.name, document.text), Cursor(0, number, read)

    size = sum(len(document.text) for document in found)
    name = str(getattr(config, "path", None) or type(config).__name__)
    return Source(name, digest.hexdigest(), size, stream, as_it_is)


def documents(config: TextData) -> list[Document]:
    """The documents of a source, in a fixed order.

    Raises:
        DataError: nothing there, nothing in it, or not text.
    """
    match config:
        case FilesData():
            return files.documents(config)
        case ShakespeareData():
            return shakespeare.documents(config)
        case StdlibData():
            return stdlib.documents(config)
        case _:
            raise TypeError(f"{type(config).__name__} is no source of text")

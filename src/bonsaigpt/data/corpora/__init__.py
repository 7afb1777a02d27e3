"""Where text comes from: one file per source, each a function from its settings to a ``Source``."""

from __future__ import annotations

from bonsaigpt.config import (
    FilesData,
    HubText,
    ShakespeareData,
    StdlibData,
    TextData,
    WikipediaData,
    WikitextData,
)
from bonsaigpt.data.corpora.files import open_files
from bonsaigpt.data.corpora.hub import open_hub
from bonsaigpt.data.corpora.options import with_options
from bonsaigpt.data.corpora.shakespeare import open_shakespeare
from bonsaigpt.data.corpora.source import Cursor, Document, Source
from bonsaigpt.data.corpora.stdlib import open_stdlib
from bonsaigpt.data.corpora.wikipedia import open_wikipedia
from bonsaigpt.data.corpora.wikitext import open_wikitext
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.progress import Advance, silent

__all__ = ["Document", "documents", "open_text"]


def open_text(config: TextData, *, hashes: FileHashes, download: bool = False, advance: Advance = silent) -> Source:
    """The documents of a source as a stream.

    Args:
        config: which source.
        hashes: of files, where they are known already, so that a text of 100 GB is hashed once. The caller saves them
            when all went well.
        download: whether the network may be used.
        advance: hears of the bytes that are hashed, and of what is fetched.

    Raises:
        DataError: nothing there, or nothing in it; while reading: damaged or no text.
        DeviceError: a package that this source needs is not there.
    """
    return with_options(_open(config, hashes, download, advance), config)


def _open(config: TextData, hashes: FileHashes, download: bool, advance: Advance) -> Source:
    match config:
        case FilesData():
            return open_files(config, hashes=hashes, advance=advance)
        case ShakespeareData():
            return open_shakespeare(config, hashes=hashes, download=download, advance=advance)
        case StdlibData():
            return open_stdlib(config, hashes=hashes, advance=advance)
        case WikipediaData():
            return open_wikipedia(config, hashes=hashes, download=download, advance=advance)
        case WikitextData():
            return open_wikitext(config, hashes=hashes, download=download, advance=advance)
        case HubText():
            return open_hub(config, hashes=hashes, download=download, advance=advance)
        case _:
            raise TypeError(f"{type(config).__name__} is no source of text")


def documents(config: TextData, *, download: bool = False, advance: Advance = silent) -> list[Document]:
    """All documents of a source, whole and at once: for texts that fit into memory."""
    source = open_text(config, hashes=FileHashes(), download=download, advance=advance)
    found: list[Document] = []
    for read, _ in source.stream(Cursor()):
        document = source.clean(read)
        if document is None or not document.text:
            continue
        if document.start and found and found[-1].name == document.name:  # the rest of the document before
            document = Document(document.name, found.pop().text + document.text)
        found.append(Document(document.name, document.text))
    return found

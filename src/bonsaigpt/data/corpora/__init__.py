"""Where text comes from: one file per source, each a function from its settings to documents."""

from __future__ import annotations

from bonsaigpt.config import FilesData, ShakespeareData, StdlibData, TextData
from bonsaigpt.data.corpora import files, shakespeare, stdlib
from bonsaigpt.data.corpora.document import Document

__all__ = ["Document", "documents"]


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

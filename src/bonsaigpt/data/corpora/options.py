"""What every source of text can be asked for: uniform text, and only the beginning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bonsaigpt.config import TextData
from bonsaigpt.data.corpora.source import Clean, Cursor, Document, Source, Stream, identity

__all__ = ["with_options"]

_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|\Z)")


def with_options(source: Source, config: TextData) -> Source:
    """The source as ``config.normalize`` and ``config.limit_mb`` want it."""
    if config.normalize:
        source = replace(source, identity=identity(source.identity, "normalize"), clean=_Normalized(source.clean))
    if config.limit_mb is not None:
        limit = int(config.limit_mb * 1e6)
        source = replace(
            source,
            identity=identity(source.identity, "limit", limit),
            size=min(source.size or limit, limit),
            stream=_until(source.stream, limit),
        )
    return source


@dataclass(frozen=True)
class _Normalized:
    """A ``clean``, and after it Unicode NFC, line feeds alone, and no spaces at the ends of lines."""

    clean: Clean

    def __call__(self, document: Document) -> Document | None:
        cleaned = self.clean(document)
        if cleaned is None:
            return None
        text = unicodedata.normalize("NFC", _LINE_ENDS.sub("\n", cleaned.text))
        return replace(cleaned, text=_TRAILING.sub("", text))


def _until(stream: Stream, limit: int) -> Stream:
    """The stream up to the end of the document with which so many bytes are read."""

    def limited(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        read = start.read
        for document, cursor in stream(start):
            if read >= limit and document.start == 0:
                return
            yield document, cursor
            read = cursor.read

    return limited

"""A document, and how one is read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bonsaigpt.errors import DataError

__all__ = ["Document", "read_document"]


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    text: str


def read_document(path: Path, *, name: str | None = None) -> Document:
    """Read one UTF-8 file, whatever the platform's default encoding is.

    Raises:
        DataError: missing, unreadable, empty, or not UTF-8 text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    if not raw:
        raise DataError(f"{path} is empty: give a file with text in it.")
    if b"\0" in raw[:8192]:
        raise DataError(f"{path} is a binary file (it has zero bytes): give a UTF-8 text file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, e.g. `iconv -f latin1 -t utf-8`."
        ) from None
    return Document(name or path.name, text)

"""From the bytes of a file to documents: the whole text, lines or paragraphs, in parts where they are long."""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bonsaigpt.data.corpora.compressed import open_bytes
from bonsaigpt.data.corpora.source import Document
from bonsaigpt.errors import DataError

__all__ = [
    "LINE_LIMIT",
    "PART",
    "Reader",
    "by_line",
    "by_paragraph",
    "check_text",
    "check_there",
    "decode",
    "in_parts",
    "lines",
    "read_document",
    "whole",
]

PART = 1 << 21
"""Characters of a document that are held at once: at most 8 MiB of UTF-8, whatever the script."""
LINE_LIMIT = 1 << 28
"""Bytes of the longest line."""
_BLOCK = 1 << 20
_NEAR = 1 << 15

Reader = Callable[[Path, str], Iterator[tuple[Document, int]]]
"""The documents of a file (its path, its name for messages), each with the bytes of the file read by then."""

_LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")
_SPACE = re.compile(r"(?<=\S) (?=\S)")


def whole(path: Path, name: str) -> Iterator[tuple[Document, int]]:
    """The text of a file as one document.

    Raises:
        DataError: cut short, binary, or not UTF-8: with the byte.
    """
    with open_bytes(path) as (file, taken):
        parts = _parts(_characters(path, file))
        first, second = next(parts, None), next(parts, None)
        if first is None:
            return
        if second is None:
            yield Document(name, first[1]), taken()
            return
        with open_bytes(path) as (again, _):
            total = sum(map(len, _characters(path, again)))
        for start, text in (first, second, *parts):
            yield Document(name, text, start, total), taken()


def by_line(path: Path, name: str) -> Iterator[tuple[Document, int]]:
    """Each line that is not blank as a document."""
    with open_bytes(path) as (file, taken):
        check_text(path, file)
        for number, offset, line in lines(path, file):
            text = decode(path, line.rstrip(b"\r\n"), offset, f"line {number}, ")
            if not text.isspace():
                for document in in_parts(f"{name}, line {number}", text):
                    yield document, taken()


def by_paragraph(path: Path, name: str) -> Iterator[tuple[Document, int]]:
    """What stands between blank lines, each a document."""
    with open_bytes(path) as (file, taken):
        check_text(path, file)
        for number, text in _paragraphs(path, file):
            for document in in_parts(f"{name}, line {number}", text):
                yield document, taken()


def _paragraphs(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, str]]:
    gathered: list[str] = []
    first = size = 0
    for number, offset, line in lines(path, file):
        text = decode(path, line.rstrip(b"\r\n"), offset, f"line {number}, ")
        if text and not text.isspace():
            first = first if gathered else number
            gathered.append(text)
            size += len(line)
            if size > LINE_LIMIT:
                raise DataError(
                    f"{path} has no blank line from line {first} to line {number}, {size >> 20} MiB: "
                    "use --data.by line or --data.by file."
                )
        elif gathered:
            yield first, "\n".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield first, "\n".join(gathered)


def lines(path: Path, file: io.BufferedReader) -> Iterator[tuple[int, int, bytes]]:
    """Number (from 1), byte and bytes of each line; a byte order mark is dropped.

    Raises:
        DataError: one is longer than ``LINE_LIMIT``.
    """
    offset = 0
    for number, line in enumerate(iter(lambda: file.readline(LINE_LIMIT + 1), b""), start=1):
        if len(line) > LINE_LIMIT:
            raise DataError(
                f"{path}, line {number} (byte {offset}) is longer than {LINE_LIMIT >> 20} MiB: check that it is a file "
                "of lines, or read it as one text with --data.by file."
            )
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        yield number, offset + len(line) - len(text), text
        offset += len(line)


def decode(path: Path, raw: bytes, offset: int, where: str = "") -> str:
    """UTF-8 to text; ``offset`` is the place of ``raw`` in the file.

    Raises:
        DataError: it is no UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_utf8(path, offset + error.start, where) from None


def _no_utf8(path: Path, byte: int, where: str = "") -> DataError:
    return DataError(f"{path} is not UTF-8 ({where}byte {byte}): convert it, e.g. `iconv -f latin1 -t utf-8`.")


def check_text(path: Path, file: io.BufferedReader) -> None:
    """Refuse a binary file; nothing is read."""
    if b"\0" in file.peek(8192)[:8192]:
        raise DataError(f"{path} is a binary file (it has zero bytes): give a UTF-8 text file.")


def _characters(path: Path, file: io.BufferedReader) -> Iterator[str]:
    """The text of a file, a block at a time."""
    check_text(path, file)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    while True:
        block = file.read(_BLOCK)
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            pending = len(error.object) - len(block)  # bytes of a character that began in the block before
            raise _no_utf8(path, done - pending + error.start) from None
        done += len(block)
        if not block:
            return


def in_parts(name: str, text: str) -> Iterator[Document]:
    """A text as a document, in parts if it is long; nothing of an empty one."""
    if len(text) <= PART:
        if text:
            yield Document(name, text)
        return
    blocks = (text[i : i + PART] for i in range(0, len(text), PART))
    for start, part in _parts(blocks):
        yield Document(name, part, start, len(text))


def _parts(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """First character and text of parts of at most ``PART`` characters, wherever the blocks begin and end."""
    start, text = 0, ""
    for block in blocks:
        text += block
        while len(text) > PART:
            cut = _cut(text)
            yield start, text[:cut]
            start, text = start + cut, text[cut:]
    if text:
        yield start, text


def _cut(text: str) -> int:
    """Where the first part ends: behind a line break that stands alone, so that no pre-split of a BPE is cut; else
    before a space that does; else where there is no more room."""
    for pattern, place in ((_LINE_BREAK, re.Match.end), (_SPACE, re.Match.start)):
        for low in (PART - _NEAR, 1):  # nearly always there is one near the end
            last = deque(pattern.finditer(text, low, PART + 1), maxlen=1)
            if last:
                return place(last[0])
    return PART


def read_document(path: Path) -> Document:
    """A file as one text, held whole.

    Raises:
        DataError: missing, unreadable, empty, or not UTF-8 text.
    """
    check_there(path)
    text = "".join(document.text for document, _ in whole(path, path.name))
    return Document(path.name, text)


def check_there(path: Path) -> None:
    """Refuse a file that is missing or empty."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    if not size:
        raise DataError(f"{path} is empty: give a file with text in it.")

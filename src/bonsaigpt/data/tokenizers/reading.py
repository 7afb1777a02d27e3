"""Plain text files as a stream of parts, for learning and judging tokenizers."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path

from bonsaigpt.data.tokenizers.presplit import in_pieces
from bonsaigpt.errors import DataError

__all__ = ["text_files", "text_parts"]

_BLOCK = 1 << 20
"""Bytes that are read at once."""


def text_files(paths: Sequence[Path], pattern: str = "**/*.txt") -> list[Path]:
    """The files, and those below folders that match ``pattern``, each folder's sorted; empty files are left out.

    Raises:
        DataError: a path that is not there, or a folder without such files.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: check the path.")
        if not path.is_dir():
            found.append(path)
            continue
        try:
            below = sorted((p for p in path.glob(pattern) if p.is_file()), key=lambda p: p.as_posix())
        except (ValueError, NotImplementedError) as error:  # pathlib's words for a pattern that is empty or absolute
            raise DataError(f"'{pattern}' is no pattern for files ({error}): use e.g. '**/*.md'.") from None
        if not below:
            raise DataError(f"no file below {path} matches '{pattern}': set --pattern, e.g. '**/*.md'.")
        found += below
    filled = [path for path in found if path.stat().st_size]
    if not filled:
        raise DataError(f"{', '.join(map(str, paths))}: there is no text in it; give files with text.")
    return filled


def text_parts(path: Path) -> Iterator[str]:
    """A UTF-8 file in parts of about a million characters, cut where no token crosses (see ``in_pieces``).

    Raises:
        DataError: not readable, a binary file, or not UTF-8; the message has the offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read, rest = 0, ""
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(_BLOCK)
                if read == 0 and b"\0" in block[:8192]:
                    raise DataError(f"{path} is a binary file (it has zero bytes): give a UTF-8 text file.")
                held = len(decoder.getstate()[0])  # bytes of a character that the last block broke off
                try:
                    rest += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    where = read - held + error.start
                    raise DataError(
                        f"{path} is not UTF-8 (byte {where:,}): convert it, e.g. `iconv -f latin1 -t utf-8`."
                    ) from None
                read += len(block)
                *whole, rest = in_pieces(rest) if block else (rest, "")
                yield from (part for part in whole if part)
                if not block:
                    return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None

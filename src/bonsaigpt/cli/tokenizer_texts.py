"""The texts that `bonsai tokenizer train` and `report` read: as `bonsai prepare files` reads them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import Parser
from bonsaigpt.config import FilesData
from bonsaigpt.data.corpora.files import left_out, readers
from bonsaigpt.errors import DataError

__all__ = ["Texts", "add_texts"]


def add_texts(parser: Parser) -> None:
    """Add the files, and how they are read; the settings of the source `files` under shorter names."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files, folders, globs in quotes, or - for standard input: text, .jsonl, .json, .parquet, also compressed",
    )
    parser.add_argument(
        "--pattern", default="**/*.txt", help="which files of a folder: globs, separated by commas (default: **/*.txt)"
    )
    parser.add_argument(
        "--by",
        choices=["auto", "file", "line", "paragraph", "field"],
        default="auto",
        help="what is a document (default: auto, a field of .jsonl, .json and .parquet, else a file)",
    )
    parser.add_argument("--field", default="text", help="name of the field that holds the text (default: text)")


class Texts:
    """The files of the flags of ``add_texts``.

    Raises:
        DataError: there are none, or all are empty.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.names: list[str] = []
        """Of the files, for people."""
        self.size = 0
        """Bytes of all, as they lie on the disk."""
        self._read = []
        for path in arguments.files:
            config = FilesData(path=path, pattern=arguments.pattern, by=arguments.by, field=arguments.field)
            with _our_flags():
                found, read = readers(config)
            for (file, name), (reader, _) in zip(found, read, strict=True):
                self.names.append(name if str(path) == "-" else str(file))
                self.size += file.stat().st_size
                self._read.append((reader, file, name))

    def __len__(self) -> int:
        return len(self.names)

    def documents(self, number: int) -> Iterator[str]:
        """The documents of a file, long ones in parts."""
        reader, file, name = self._read[number]
        with _our_flags():
            for document, _ in reader(file, name):
                yield document.text

    def check(self, size: int) -> None:
        """Refuse texts of which ``size`` bytes were read, if that is none."""
        if not size:
            raise DataError(f"there is no text in {', '.join(self.names)}: give files with text.")

    def tell(self, console: Console) -> None:
        """Say which files of the folders are left out."""
        for path in self._arguments.files:
            if note := left_out(path, self._arguments.pattern):
                console.print(f"{path}: {_short(note)}", style="dim", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _our_flags() -> Iterator[None]:
    """The messages of the source `files` speak of its settings."""
    try:
        yield
    except DataError as error:
        raise type(error)(_short(str(error))) from None


def _short(message: str) -> str:
    return message.replace("--data.path", "the path").replace("--data.", "--").replace("data.by", "--by")

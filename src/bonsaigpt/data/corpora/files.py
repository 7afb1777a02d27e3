"""Source `files`: files of text, JSON lines or parquet, also compressed; or standard input."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

from bonsaigpt.config import FilesData
from bonsaigpt.data.corpora.compressed import plain_suffix
from bonsaigpt.data.corpora.document import Reader, by_line, by_paragraph, check_there, whole
from bonsaigpt.data.corpora.records import by_json_line, by_row
from bonsaigpt.data.corpora.source import Clean, Source, as_it_is, identity, reading
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.files import writing
from bonsaigpt.progress import Advance

__all__ = ["Found", "find", "hashed", "open_files", "over_files"]

Found = list[tuple[Path, str]]
"""Files, and what messages call them."""


def open_files(config: FilesData, *, hashes: FileHashes, advance: Advance) -> Source:
    """The documents of all files, sorted by path, so that the same folder gives the same tokens everywhere."""
    if str(config.path) == "-":
        found, name = [(_spooled(sys.stdin.buffer), "standard input")], "standard input"
    else:
        found, name = find(config.path, config.pattern), str(config.path)
    readers = [_reader(path, config) for path, _ in found]
    return over_files(
        name,
        found,
        [read for read, _ in readers],
        settings=["files", *(words for _, words in readers)],
        hashes=hashes,
        advance=advance,
    )


def _reader(path: Path, config: FilesData) -> tuple[Reader, str]:
    """How a file is read, and in words that change when that does."""
    suffix = plain_suffix(path)
    by = config.by
    if by == "auto":
        by = "field" if suffix in (".jsonl", ".json", ".parquet") else "file"
    if suffix == ".parquet" and by != "field":
        raise ConfigError(f"data.by = '{by}' cannot be used with {path}: parquet has fields, leave data.by out.")
    if by == "field":
        read = by_row if suffix == ".parquet" else by_json_line
        return partial(read, field=config.field), f"{suffix == '.parquet'} {config.field}"
    return {"file": whole, "line": by_line, "paragraph": by_paragraph}[by], by


def over_files(
    name: str,
    found: Found,
    readers: Sequence[Reader],
    *,
    settings: object,
    hashes: FileHashes,
    advance: Advance,
    clean: Clean = as_it_is,
) -> Source:
    """The source that goes through files one after the other.

    Args:
        name: in words.
        found: the files, in order.
        readers: how each is read.
        settings: all that decides, besides the files' content, what the documents are.
        hashes: of files, where they are known already.
        advance: hears of the bytes that are hashed.
        clean: makes a document of what is read.
    """
    contents = hashed([path for path, _ in found], hashes, advance)
    return Source(
        name=name,
        identity=identity(settings, contents),
        size=sum(path.stat().st_size for path, _ in found),
        stream=reading(
            len(found), lambda number: readers[number](*found[number]), sizes=[p.stat().st_size for p, _ in found]
        ),
        clean=clean,
    )


def find(path: Path, pattern: str) -> Found:
    """The files that a user means by a file, a folder with patterns, or a glob; empty ones of several are left out.

    Raises:
        DataError: there are none, or all are empty.
    """
    if path.is_file():
        check_there(path)
        return [(path, path.name)]
    if path.is_dir():
        root, patterns = path, [p.strip() for p in pattern.split(",") if p.strip()]
    else:
        magic = next((i for i, part in enumerate(path.parts) if set(part) & set("*?[")), None)
        if magic is None:
            raise DataError(f"{path} does not exist: check --data.path.")
        root, patterns = Path(*path.parts[:magic]), ["/".join(path.parts[magic:])]
        if not root.is_dir():
            raise DataError(f"{root} does not exist: check --data.path.")
    try:
        paths = sorted({p for each in patterns or [""] for p in root.glob(each) if p.is_file()}, key=Path.as_posix)
    except (ValueError, NotImplementedError) as error:  # pathlib's words for a pattern that is empty or absolute
        raise DataError(
            f"'{pattern}' is no pattern for files below {root} ({error}): set --data.pattern, e.g. '**/*.md'."
        ) from None
    if not paths and root != path:
        raise DataError(f"no file matches {path}: check --data.path.")
    if not paths:
        raise DataError(f"no file below {root} matches '{pattern}': set --data.pattern, e.g. '**/*{_common(root)}'.")
    found = [(p, p.relative_to(root).as_posix()) for p in paths if p.stat().st_size]
    if not found:
        raise DataError(f"all {len(paths)} files below {root} are empty: give files with text in them.")
    return found


def _common(root: Path) -> str:
    """The suffix, with that of a compression, that most files of a folder have."""
    suffixes = Counter(plain_suffix(p) + (p.suffix if plain_suffix(p) != p.suffix.lower() else "") for p in _all(root))
    suffixes.pop("", None)
    return suffixes.most_common(1)[0][0] if suffixes else ".md"


def _all(root: Path) -> list[Path]:
    return [p for p in root.glob("**/*") if p.is_file()]


def hashed(paths: Sequence[Path], hashes: FileHashes, advance: Advance) -> list[str]:
    """SHA-256 of each file, in hex digits."""
    try:
        total = sum(path.stat().st_size for path in paths if not hashes.known(path))
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            advance("hashing", done, total)

        return [hashes.sha256(path, add) for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Check the path.") from None


@lru_cache(maxsize=1)
def _spooled(stdin: IO[bytes]) -> Path:
    """Standard input as a file, so that it can be read again; it is gone when the program ends."""
    if stdin.isatty():
        raise DataError("standard input is a terminal: pipe a text into it, or give a file with --data.path.")
    folder = Path(tempfile.mkdtemp(prefix="bonsai-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input"
    with writing(path), path.open("wb") as file:
        shutil.copyfileobj(stdin, file, 1 << 20)
    if not path.stat().st_size:
        raise DataError("standard input is empty: pipe a text into it, or give a file with --data.path.")
    return path

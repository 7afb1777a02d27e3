"""Source `files`: files of text, JSON lines or parquet, also compressed; or standard input."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from bonsaigpt.units import named

__all__ = ["Found", "find", "hashed", "left_out", "open_files", "over_files", "readers"]

Found = list[tuple[Path, str]]
"""Files, and what messages call them."""
_KINDS = 4
"""Suffixes that are named of the files that are left out."""


def open_files(config: FilesData, *, hashes: FileHashes, advance: Advance) -> Source:
    """The documents of all files, sorted by path, so that the same folder gives the same tokens everywhere."""
    found, read = readers(config)
    return over_files(
        "standard input" if str(config.path) == "-" else str(config.path),
        found,
        [read for read, _ in read],
        settings=["files", *(words for _, words in read)],
        hashes=hashes,
        advance=advance,
        note=partial(left_out, config.path, config.pattern),
    )


def readers(config: FilesData) -> tuple[Found, list[tuple[Reader, str]]]:
    """The files that a configuration means, sorted, and how each is read: a function, and words that change when what
    it makes of a file does.

    Raises:
        DataError: there are none, or nothing in them.
    """
    if str(config.path) == "-":
        found = [(_spooled(sys.stdin.buffer), "standard input")]
    else:
        found = find(config.path, config.pattern)
    return found, [_reader(path, config) for path, _ in found]


def _reader(path: Path, config: FilesData) -> tuple[Reader, str]:
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
    note: Callable[[], str] = str,
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
        note: what a user should know of the choice of files; asked only when they are read.
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
        note=note,
    )


def find(path: Path, pattern: str, remedy: str | None = None) -> Found:
    """The files that a user means by a file, a folder with patterns, or a glob; empty ones of several are left out.

    Args:
        remedy: what to do where a folder has none; unless said otherwise, to set --data.pattern.

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
        remedy = remedy or f"set --data.pattern, e.g. '**/*{_common(root)}'"
        raise DataError(f"no file below {root} matches '{pattern}': {remedy}.")
    found = [(p, p.relative_to(root).as_posix()) for p in paths if p.stat().st_size]
    if not found:
        raise DataError(f"all is empty in the {named(len(paths), 'file')} below {root}: give files with text in them.")
    return found


def left_out(path: Path, pattern: str) -> str:
    """Which files of a folder its patterns do not match, in a sentence; hidden ones are not spoken of."""
    if not path.is_dir():
        return ""
    taken = {found for found, _ in find(path, pattern)}
    others = _suffixes(p for p in _all(path) if p not in taken and p.stat().st_size)
    if not others:
        return ""
    most = sorted(others.items(), key=lambda found: (-found[1], found[0]))[:_KINDS]
    kinds = ", ".join(f"{suffix or 'without a suffix'} {count:,}" for suffix, count in most)
    more = f", {named(len(others) - _KINDS, 'more kind')}" if len(others) > _KINDS else ""
    count = others.total()
    return (
        f"{named(count, 'other file')} ({kinds}{more}) {'does' if count == 1 else 'do'} not match '{pattern}'; "
        "--data.pattern takes more"
    )


def _common(root: Path) -> str:
    """The suffix, with that of a compression, that most files of a folder have."""
    suffixes = _suffixes(_all(root))
    suffixes.pop("", None)
    return suffixes.most_common(1)[0][0] if suffixes else ".md"


def _suffixes(paths: Iterable[Path]) -> Counter[str]:
    return Counter(plain_suffix(p) + (p.suffix if plain_suffix(p) != p.suffix.lower() else "") for p in paths)


def _all(root: Path) -> list[Path]:
    """The files of a folder that are not hidden."""
    found = (p for p in root.glob("**/*") if p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]


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

"""Source `files`: one text file, or every file below a folder that matches a pattern."""

from __future__ import annotations

from bonsaigpt.config import FilesData
from bonsaigpt.data.corpora.document import Document, read_document
from bonsaigpt.errors import DataError

__all__ = ["documents"]


def documents(config: FilesData) -> list[Document]:
    """One document a file, sorted by path, so that the same folder gives the same tokens everywhere."""
    root = config.path
    if not root.exists():
        raise DataError(f"{root} does not exist: check --data.path.")
    if root.is_file():
        return [read_document(root)]
    try:
        paths = sorted((p for p in root.glob(config.pattern) if p.is_file()), key=lambda p: p.as_posix())
    except (ValueError, NotImplementedError) as error:  # pathlib's words for a pattern that is empty or absolute
        raise DataError(
            f"'{config.pattern}' is no pattern for files below {root} ({error}): set --data.pattern, e.g. '**/*.md'."
        ) from None
    if not paths:
        raise DataError(f"no file below {root} matches '{config.pattern}': set --data.pattern, e.g. '**/*.md'.")
    found = [read_document(p, name=p.relative_to(root).as_posix()) for p in paths if p.stat().st_size]
    if not found:
        raise DataError(f"all {len(paths)} files below {root} are empty: give files with text in them.")
    return found

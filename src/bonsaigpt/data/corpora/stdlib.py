"""Source `stdlib`: the Python standard library's source, the one real text that every user already has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from bonsaigpt.config import StdlibData
from bonsaigpt.data.corpora.document import whole
from bonsaigpt.data.corpora.files import Found, over_files
from bonsaigpt.data.corpora.source import Source
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError
from bonsaigpt.progress import Advance

__all__ = ["open_stdlib"]


def open_stdlib(config: StdlibData, *, hashes: FileHashes, advance: Advance) -> Source:
    """The modules and packages of the library itself, sorted by path: no tests, no bundled wheels, no site-packages."""
    root = config.path or Path(sysconfig.get_paths()["stdlib"])
    left_out = {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "ensurepip",
        "lib2to3",
        "__pycache__",
    }
    found: Found = []
    for path in sorted(root.glob("**/*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        # Generated tables (code pages, platform data) are no prose of anybody's.
        if left_out & set(relative.parts) or relative.parts[0] in {"encodings", "turtledemo", "pydoc_data"}:
            continue
        if relative.parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a few files of the library are in other encodings on purpose
        if text:
            found.append((path, relative.as_posix()))
    if not found:
        raise DataError(
            f"{root} holds no Python source (some systems strip it): give a folder with --data.path, "
            "or train on your own text with --data.kind files --data.path FILE."
        )
    name = f"the standard library at {root}"
    return over_files(name, found, [whole] * len(found), settings="stdlib", hashes=hashes, advance=advance)

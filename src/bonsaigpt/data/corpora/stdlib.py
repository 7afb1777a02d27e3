"""Source `stdlib`: the Python standard library's source, the one real text that every user already has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from bonsaigpt.config import StdlibData
from bonsaigpt.data.corpora.document import Document
from bonsaigpt.errors import DataError

__all__ = ["documents"]


def documents(config: StdlibData) -> list[Document]:
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
    found: list[Document] = []
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
            found.append(Document(relative.as_posix(), text))
    if not found:
        raise DataError(
            f"{root} holds no Python source (some systems strip it): give a folder with --data.path, "
            "or train on your own text with --data.kind files --data.path FILE."
        )
    return found

"""What is known of inputs that were read before: the SHA-256 of files, and the commits of the hub's data sets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bonsaigpt.errors import OutputError
from bonsaigpt.files import write_text

__all__ = ["FileHashes"]

_BLOCK = 4 << 20
_SETTLED = 2.0
"""Seconds after which a change of a file shows in its times on every file system (FAT counts in twos)."""

Stamp = list[int]
"""Size, inode, times of the last change of content and of anything. The last of them no program can set back."""


class FileHashes:
    """Hashes of files, kept in ``memory`` (a JSON file) from one call to the next; None keeps them here alone.

    A file is read again as soon as its size, inode, mtime or ctime is another. So a changed byte is noticed even if the
    old mtime is put back; what a disk does to a file behind the system's back is not: ``forget`` it and read anew. A
    file that was changed in the last two seconds is not remembered: the next change might bear the same time.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._commits: dict[str, str] = {}
        self._changed = False
        if memory is not None:
            with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # a damaged memory is no memory
                found = json.loads(memory.read_text(encoding="utf-8"))
                self._known = {str(path): (list(stamp), str(sha)) for path, (stamp, sha) in found["files"].items()}
                self._commits = {str(name): str(commit) for name, commit in found["commits"].items()}

    def known(self, path: Path) -> bool:
        """Whether ``sha256`` would answer without reading the file."""
        found = self._known.get(_name(path))
        return found is not None and found[0] == _stamp(path)

    def sha256(self, path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
        """The hash in hex digits; ``advance`` is told the bytes of each stretch that had to be read.

        Raises:
            OSError: the file cannot be read.
        """
        stamp, now = _stamp(path), time.time()
        found = self._known.get(_name(path))
        if found is not None and found[0] == stamp:
            return found[1]
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                advance(len(block))
        if stamp == _stamp(path) and now - path.stat().st_mtime >= _SETTLED:
            self._known[_name(path)] = (stamp, digest.hexdigest())
            self._changed = True
        return digest.hexdigest()

    def forget(self, path: Path) -> None:
        """Read this file anew when its hash is next asked for."""
        self._changed |= self._known.pop(_name(path), None) is not None

    def commit(self, name: str) -> str | None:
        """The commit that a data set's branch or tag was at when it was last fetched."""
        return self._commits.get(name)

    def remember_commit(self, name: str, commit: str) -> None:
        """What ``commit`` answers from now on."""
        self._changed |= self._commits.get(name) != commit
        self._commits[name] = commit

    def save(self) -> None:
        """Write the memory, as far as its files still exist; where that cannot be done, the next call reads again."""
        if self._memory is None or not self._changed:
            return
        self._known = {path: found for path, found in self._known.items() if Path(path).exists()}
        with suppress(OutputError, OSError):
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._memory, json.dumps({"files": self._known, "commits": self._commits}, indent=0))
        self._changed = False


def _name(path: Path) -> str:
    return str(path.resolve())


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]

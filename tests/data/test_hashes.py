"""Files are hashed once, and again when they change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from bonsaigpt.config import FilesData
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.prepare import prepare


def aged(path: Path, content: bytes, seconds: float = 10.0) -> Path:
    """A file that was last changed some time ago."""
    path.write_bytes(content)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def hash_and_reads(hashes: FileHashes, path: Path) -> tuple[str, int]:
    read: list[int] = []
    return hashes.sha256(path, read.append), sum(read)


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path, memory = aged(tmp_path / "a", b"one"), tmp_path / "deep" / ".hashes.json"
    hashes = FileHashes(memory)
    assert hash_and_reads(hashes, path) == (hashlib.sha256(b"one").hexdigest(), 3)
    assert hashes.known(path)
    hashes.save()
    assert hash_and_reads(FileHashes(memory), path) == (hashlib.sha256(b"one").hexdigest(), 0)
    mtime = path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(mtime, mtime))  # the same size and time: the inode's own time tells
    assert hash_and_reads(FileHashes(memory), path) == (hashlib.sha256(b"two").hexdigest(), 3)
    again = FileHashes(memory)
    again.forget(path)
    assert hash_and_reads(again, path)[1] == 3


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = aged(tmp_path / "a", b"one", seconds=0.0)
    hashes = FileHashes(tmp_path / ".hashes.json")
    assert hash_and_reads(hashes, path)[1] == 3
    assert hash_and_reads(hashes, path)[1] == 3
    assert not hashes.known(path)


def test_a_damaged_memory_is_none_and_gone_files_are_forgotten(tmp_path: Path) -> None:
    memory = tmp_path / ".hashes.json"
    gone = aged(tmp_path / "gone", b"x")
    for damage in (b"", b"[1]", b'{"files": {"a": 3}}', b"\xff"):
        memory.write_bytes(damage)
        assert FileHashes(memory).commit("a/b@main") is None
        assert not FileHashes(memory).known(gone)
    hashes = FileHashes(memory)
    hashes.sha256(gone)
    hashes.remember_commit("a/b@main", "0" * 40)
    gone.unlink()
    hashes.save()
    assert json.loads(memory.read_text()) == {"files": {}, "commits": {"a/b@main": "0" * 40}}
    assert FileHashes(memory).commit("a/b@main") == "0" * 40


def test_a_source_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        aged(tmp_path / f"{i}.txt", b"words " * 999)
    config, memory = FilesData(path=tmp_path), tmp_path / "corpora" / ".hashes.json"
    told: list[tuple[str, int, int]] = []
    hashes = FileHashes(memory)
    first = open_text(config, hashes=hashes, advance=lambda *what: told.append(what))
    assert told[-1] == ("hashing", 3 * 5994, 3 * 5994)
    hashes.save()
    told.clear()
    second = open_text(config, hashes=FileHashes(memory), advance=lambda *what: told.append(what))
    assert told == []
    assert second.identity == first.identity


def test_a_second_preparation_reads_no_file_of_the_source(tmp_path: Path) -> None:
    aged(tmp_path / "a.txt", b"words of a text " * 999)
    told: list[str] = []
    for _ in range(2):
        told.clear()
        prepare(FilesData(path=tmp_path), tmp_path / "corpora", advance=lambda what, *_: told.append(what))
    assert "hashing" not in told

"""Files are read once; a changed one is read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from bonsaigpt.data.hashes import FileHashes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shard.bin"
    path.write_bytes(b"bonsai" * 1000)
    return path


def reads(hashes: FileHashes, path: Path) -> tuple[str, int]:
    """The hash, and how many bytes were read for it."""
    read: list[int] = []
    return hashes.sha256(path, read.append), sum(read)


def test_a_file_is_read_once_even_by_the_next_process(file: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    hashes = FileHashes(tmp_path / "memory.json")
    assert not hashes.known(file)
    assert reads(hashes, file) == (expected, 6000)
    assert reads(hashes, file) == (expected, 0)
    hashes.save()
    later = FileHashes(tmp_path / "memory.json")
    assert later.known(file)
    assert reads(later, file) == (expected, 0)
    later.forget(file)
    assert reads(later, file) == (expected, 6000)


def test_a_changed_byte_is_seen_even_with_the_old_time_put_back(file: Path, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "memory.json")
    before, _ = reads(hashes, file)
    status = file.stat()
    raw = bytearray(file.read_bytes())
    raw[77] ^= 1
    with file.open("r+b") as out:
        out.write(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    after, read = reads(hashes, file)
    assert read == 6000
    assert after != before


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"x": 3}', b"\xff"])
def test_a_damaged_memory_is_no_memory(content: bytes, file: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    hashes = FileHashes(tmp_path / "memory.json")
    assert reads(hashes, file)[1] == 6000
    hashes.save()
    assert FileHashes(tmp_path / "memory.json").known(file)


def test_where_nothing_can_be_kept_nothing_fails(file: Path, tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "nowhere/memory.json")
    reads(hashes, file)
    hashes.save()
    assert not (tmp_path / "nowhere").exists()


def test_files_that_are_gone_are_forgotten(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"x")
    hashes = FileHashes(tmp_path / "memory.json")
    reads(hashes, file)
    reads(hashes, other)
    other.unlink()
    hashes.save()
    assert "other.bin" not in (tmp_path / "memory.json").read_text()

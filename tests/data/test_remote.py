"""Corpora from elsewhere, through fsspec's file system in memory: fetched once, checked, gone on with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from bonsaigpt.config import ByteTokenizerConfig, CorpusData, FilesData
from bonsaigpt.data import remote
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.shards import Corpus
from bonsaigpt.errors import DataError, DeviceError

ADDRESS = "memory://bucket/mine"


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Corpus]:
    """A corpus on this disk, and a copy in memory://."""
    text = tmp_path / "text.txt"
    text.write_text("a text that lies elsewhere. " * 50, encoding="utf-8")
    corpus = prepare(FilesData(path=text, tokenizer=ByteTokenizerConfig()), tmp_path / "over-there")
    there = fsspec.filesystem("memory")
    for file in corpus.folder.iterdir():
        there.pipe(f"/bucket/mine/{file.name}", file.read_bytes())
    yield corpus
    there.rm("/bucket", recursive=True)


def test_a_remote_corpus_is_fetched_once(original: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    got = prepare(CorpusData(path=ADDRESS), tmp_path / "c", advance=lambda what, done, total: said.append(what))
    assert got.fingerprint == original.fingerprint
    assert np.array_equal(got.tokens("train"), original.tokens("train"))
    assert "fetching train-000000.bin" in said
    monkeypatch.setattr(remote, "_fetch", lambda *_: pytest.fail("it is here already"))
    assert prepare(CorpusData(path=ADDRESS), tmp_path / "c").folder == got.folder


def test_a_local_folder_is_opened_where_it_is(original: Corpus, tmp_path: Path) -> None:
    assert prepare(CorpusData(path=str(original.folder)), tmp_path / "c").folder == original.folder
    with pytest.raises(DataError, match="nowhere is not a whole corpus"):
        prepare(CorpusData(path=str(tmp_path / "nowhere")), tmp_path / "c")


def test_what_was_fetched_before_a_stop_is_kept(
    original: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, fetched = remote._fetch, []

    def stopping(path: str, target: Path, *rest: object) -> None:
        if fetched:
            raise KeyboardInterrupt
        fetch(path, target, *rest)  # type: ignore[arg-type]
        fetched.append(target.name)

    monkeypatch.setattr(remote, "_fetch", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(CorpusData(path=ADDRESS), tmp_path / "c")
    [folder] = (tmp_path / "c").iterdir()
    assert [p.name for p in folder.iterdir()] == fetched == ["train-000000.bin"]
    again: list[str] = []
    monkeypatch.setattr(
        remote, "_fetch", lambda path, target, *rest: (again.append(target.name), fetch(path, target, *rest))
    )
    assert prepare(CorpusData(path=ADDRESS), tmp_path / "c").count("val") == original.count("val")
    assert again == ["val-000000.bin"]


def test_a_shard_that_is_not_what_its_hash_says_is_not_kept(original: Corpus, tmp_path: Path) -> None:
    there = fsspec.filesystem("memory")
    damaged = bytearray(there.cat("/bucket/mine/val-000000.bin"))
    damaged[3] ^= 1
    there.pipe("/bucket/mine/val-000000.bin", bytes(damaged))
    with pytest.raises(DataError, match=r"memory://bucket/mine/val-000000.bin has the SHA-256 .*changed or damaged"):
        prepare(CorpusData(path=ADDRESS), tmp_path / "c")
    [folder] = (tmp_path / "c").iterdir()
    assert [p.name for p in folder.iterdir()] == ["train-000000.bin"]


def test_addresses_that_cannot_be_read(original: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, words in {
        "memory://bucket/other": "memory://bucket/other/corpus.json cannot be read",
        "nonsense://x/y": "nonsense://x/y/corpus.json cannot be read",
    }.items():
        with pytest.raises(DataError, match=re.escape(words)):
            prepare(CorpusData(path=address), tmp_path / "c")
    described = json.loads((original.folder / "corpus.json").read_text())
    described["shards"][0]["file"] = "../../evil.bin"
    fsspec.filesystem("memory").pipe("/bucket/mine/corpus.json", json.dumps(described).encode())
    with pytest.raises(DataError, match="no plain file name"):
        prepare(CorpusData(path=ADDRESS), tmp_path / "c")

    def missing(name: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(remote, "import_module", missing)
    with pytest.raises(DeviceError, match=r"s3://b/mine needs a package that is not here .*pip install s3fs"):
        prepare(CorpusData(path="s3://b/mine"), tmp_path / "c")
    assert not (tmp_path / "c").exists()

"""From text to shards: content decides."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.config import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    FilesData,
    RunConfig,
    ShakespeareData,
    StdlibData,
    derive,
)
from bonsaigpt.data.corpora import documents, shakespeare
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.prepare import open_source, prepare
from bonsaigpt.data.shards import open_corpus, verify_shards
from bonsaigpt.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small documents."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i:02}.txt").write_text(f"document {i}: " + "the bonsai grows slowly. " * (i + 1), encoding="utf-8")
    return texts


@pytest.mark.parametrize("tokenizer", [{"kind": "chars"}, {"kind": "bytes"}, {"kind": "bpe", "vocab_size": 300}])
def test_what_goes_in_comes_out(folder: Path, tmp_path: Path, tokenizer: dict) -> None:
    config = FilesData.model_validate({"path": folder, "tokenizer": tokenizer})
    corpus = prepare(config, tmp_path / "corpora")
    end = corpus.tokenizer.end_of_text
    pieces: list[str] = []
    for split in ("train", "val"):
        ids = corpus.tokens(split)
        assert ids.dtype == corpus.dtype
        cuts = np.flatnonzero(ids == end) if end is not None else []
        pieces += [corpus.tokenizer.decode(part).removeprefix("") for part in np.split(ids, cuts)]
    texts = [p.read_text() for p in sorted(folder.iterdir())]
    if end is not None:
        assert sorted(pieces) == sorted(texts)
    else:
        assert sorted("\n".join(pieces).split("\n")) == sorted(texts)


def test_held_out_documents_stay_held_out_when_more_text_comes(folder: Path, tmp_path: Path) -> None:
    def held(path: Path) -> set[str]:
        corpus = prepare(FilesData(path=path, tokenizer=ByteTokenizerConfig()), tmp_path / "corpora")
        return set(corpus.tokenizer.decode(np.where(corpus.tokens("val") == 256, 10, corpus.tokens("val"))).split("\n"))

    before = held(folder)
    for i in range(40, 80):
        (folder / f"{i:02}.txt").write_text(f"new document {i}", encoding="utf-8")
    after = held(folder)
    assert before < after


def test_a_corpus_is_found_again_by_content_and_settings(folder: Path, tmp_path: Path) -> None:
    corpora = tmp_path / "corpora"
    first = prepare(FilesData(path=folder), corpora)
    stamp = (first.folder / "corpus.json").stat().st_mtime_ns
    again = prepare(FilesData(path=folder), corpora)
    assert again.folder == first.folder
    assert (again.folder / "corpus.json").stat().st_mtime_ns == stamp
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert prepare(FilesData(path=moved), corpora).folder == first.folder  # the same text at another place
    (moved / "00.txt").write_text("changed")
    assert prepare(FilesData(path=moved), corpora).folder != first.folder
    assert prepare(FilesData(path=moved, val_fraction=0.2), corpora).folder != first.folder


def test_corpus_json_tells_the_truth(folder: Path, tmp_path: Path) -> None:
    corpus = prepare(FilesData(path=folder), tmp_path)
    told = json.loads((corpus.folder / "corpus.json").read_text())
    assert told["documents"] == 40
    assert told["tokenizer"] == {
        "kind": "chars",
        "vocab_size": corpus.tokenizer.vocab_size,
        "sha256": hashlib.sha256((corpus.folder / "tokenizer.json").read_bytes()).hexdigest(),
    }
    for shard in told["shards"]:
        assert (corpus.folder / shard["file"]).stat().st_size == shard["tokens"] * np.dtype(told["dtype"]).itemsize
    opened = open_corpus(corpus.folder)
    verify_shards(opened, FileHashes())
    assert opened.fingerprint == corpus.fingerprint
    assert "content hash" in opened.split


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "no shard", "tokenizer"])
def test_a_damaged_corpus_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    corpus = prepare(FilesData(path=folder), tmp_path / "corpora")
    shard = corpus.folder / corpus.shards[0].file
    raw = shard.read_bytes()
    if damage == "truncate":
        shard.write_bytes(raw[:-1])
    elif damage == "flip":
        shard.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "tokenizer":  # two characters change places: nothing but the hash can tell
        path = corpus.folder / "tokenizer.json"
        told = json.loads(path.read_text())
        one, two, *others = told["characters"]
        path.write_text(json.dumps(told | {"characters": "".join([two, one, *others])}))
    elif damage == "no json":
        (corpus.folder / "corpus.json").unlink()
    else:
        shard.unlink()
    with pytest.raises(DataError, match="delete"):
        verify_shards(open_corpus(corpus.folder), FileHashes())


def test_a_corpus_without_the_hash_of_its_tokenizer_still_opens(folder: Path, tmp_path: Path) -> None:
    corpus = prepare(FilesData(path=folder), tmp_path / "corpora")
    told = json.loads((corpus.folder / "corpus.json").read_text())
    del told["tokenizer"]["sha256"]
    (corpus.folder / "corpus.json").write_text(json.dumps(told))
    assert open_corpus(corpus.folder).tokenizer.to_json() == corpus.tokenizer.to_json()


def test_one_document_is_split_at_its_tail_as_nanogpt_does(shared_data: Path, tmp_path: Path) -> None:
    config = ShakespeareData(path=shared_data / "tinyshakespeare.txt")
    corpus = prepare(config, tmp_path)
    text = (shared_data / "tinyshakespeare.txt").read_text()
    assert (corpus.count("train"), corpus.count("val")) == (1_003_854, 111_540)  # its README's figures
    assert corpus.tokenizer.vocab_size == 65
    assert corpus.tokenizer.decode(corpus.tokens("val")) == text[1_003_854:]


def test_another_file_is_not_taken_for_tiny_shakespeare(tmp_path: Path) -> None:
    (tmp_path / "my x.txt").write_text("To be")
    with pytest.raises(DataError, match=r"SHA-256 differs\): for text of your own .* --data.path '.*my x.txt';"):
        documents(ShakespeareData(path=tmp_path / "my x.txt"))
    with pytest.raises(DataError, match="SHA-256 differs"):  # nor a folder
        documents(ShakespeareData(path=tmp_path))


def test_a_download_is_checked_and_leaves_nothing_when_it_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("not it")
    with pytest.raises(DataError, match="not Tiny Shakespeare"):
        shakespeare.fetch(tmp_path / "out.txt", url=wrong.as_uri())
    with pytest.raises(DataError, match=r"could not be fetched.*--data\.path"):
        shakespeare.fetch(tmp_path / "out.txt", url=(tmp_path / "missing").as_uri())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wrong.txt"]


def test_a_download_that_is_right_is_kept_and_not_fetched_twice(shared_data: Path, tmp_path: Path) -> None:
    url = (shared_data / "tinyshakespeare.txt").resolve().as_uri()
    target = shakespeare.fetch(tmp_path / "tinyshakespeare.txt", url=url)
    assert documents(ShakespeareData(path=target))[0].text.startswith("First Citizen")
    assert shakespeare.fetch(target, url="file:///nowhere") == target


def test_stdlib_is_here_and_leaves_tests_and_tables_out(tmp_path: Path) -> None:
    names = [d.name for d in documents(StdlibData())]
    assert "argparse.py" in names
    assert names == sorted(names)
    assert not [n for n in names if n.startswith(("test/", "encodings/", "site-packages/"))]
    with pytest.raises(DataError, match="no Python source"):
        documents(StdlibData(path=tmp_path))


def test_a_bpe_vocabulary_is_learned_on_the_training_side_only(tmp_path: Path) -> None:
    texts = tmp_path / "t.txt"
    texts.write_text("aaaa bbbb " * 200 + "zqzqzqzq " * 20)
    corpus = prepare(FilesData(path=texts, tokenizer=BpeTokenizerConfig(vocab_size=270)), tmp_path / "c")
    assert "zq" not in corpus.tokenizer.to_json()
    assert "zqzq" in corpus.tokenizer.decode(corpus.tokens("val"))


def test_open_source_fingerprints_whatever_changes_a_batch(folder: Path, tmp_path: Path) -> None:
    base = RunConfig(data=FilesData(path=folder), model=RunConfig().model.model_copy(update={"block_size": 8}))
    prints = {
        open_source(config, tmp_path).fingerprint
        for config in (
            base,
            derive(base, data={"order": "random"}),
            derive(base, train={"batch_size": 5}),
            derive(base, data={"val_fraction": 0.3}),
        )
    }
    assert len(prints) == 4
    assert open_source(base, tmp_path).fingerprint in prints


# ------------------------------------------------------------------------------------------------- bytes that stay


@pytest.mark.parametrize(
    ("tokenizer", "train", "val"),
    [
        ("bytes", "e6040d08e6d7f0b9", "be9306cb3762b502"),
        ("chars", "3e7f1462e91bf85c", "0521b8de873ac641"),
    ],
)
def test_a_folder_gives_the_bytes_it_always_gave(
    folder: Path, tmp_path: Path, tokenizer: str, train: str, val: str
) -> None:
    """Taken before corpora were prepared in a stream: existing runs go on with their data."""
    corpus = prepare(FilesData.model_validate({"path": folder, "tokenizer": {"kind": tokenizer}}), tmp_path / "c")
    assert [s.sha256[:16] for s in corpus.shards] == [train, val]


def test_tiny_shakespeare_gives_the_bytes_it_always_gave(shared_data: Path, tmp_path: Path) -> None:
    corpus = prepare(ShakespeareData(path=shared_data / "tinyshakespeare.txt"), tmp_path)
    assert corpus.fingerprint == "8c23edb7c7b9283d0924ab2926fa234eed769b0205d149128360376134efdcc1"


# ------------------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("put_back", [False, True])
def test_a_flipped_byte_is_found_when_training_starts(folder: Path, tmp_path: Path, put_back: bool) -> None:
    config = RunConfig(data=FilesData(path=folder), model=RunConfig().model.model_copy(update={"block_size": 8}))
    corpora = tmp_path / "corpora"
    open_source(config, corpora)
    open_source(config, corpora)  # verified, and remembered
    [shard] = corpora.glob("*/train-000000.bin")
    status = shard.stat()
    raw = bytearray(shard.read_bytes())
    raw[1234] ^= 1
    with shard.open("r+b") as file:
        file.write(raw)
    if put_back:
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):  # it is not taken for verified the next time
        with pytest.raises(DataError, match=r"train-000000\.bin was changed.*delete"):
            open_source(config, corpora)
    raw[1234] ^= 1
    with shard.open("r+b") as file:
        file.write(raw)
    open_source(config, corpora)


def test_a_corpus_of_format_1_opens(folder: Path, tmp_path: Path) -> None:
    corpus = prepare(FilesData(path=folder), tmp_path)
    (corpus.folder / "train-000000.bin").rename(corpus.folder / "train-000.bin")
    told = json.loads((corpus.folder / "corpus.json").read_text())
    old = {key: told[key] for key in ("source", "documents", "split", "tokenizer", "dtype", "shards", "notes")}
    del old["tokenizer"]["sha256"]
    old |= {"format": 1, "text_sha256": told["identity"]}
    old["shards"][0]["file"] = "train-000.bin"
    (corpus.folder / "corpus.json").write_text(json.dumps(old))
    opened = open_corpus(corpus.folder)
    verify_shards(opened, FileHashes())
    assert opened.fingerprint == corpus.fingerprint
    assert opened.counts == {}
    (corpus.folder / "corpus.json").write_text(json.dumps(old | {"format": 3}))
    with pytest.raises(DataError, match="newer version"):
        open_corpus(corpus.folder)

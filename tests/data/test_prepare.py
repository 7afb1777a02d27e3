"""From text to shards: content decides."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from bonsaigpt.data import growing, pieces
from bonsaigpt.data.corpora import documents, shakespeare
from bonsaigpt.data.corpora.source import Cursor, Document, Source, as_it_is
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.pieces import content_hash
from bonsaigpt.data.prepare import open_source, prepare, prepare_source
from bonsaigpt.data.shards import Corpus, Counts, open_corpus, verify_shards
from bonsaigpt.data.writing import ShardWriter
from bonsaigpt.errors import DataError, OutputError
from bonsaigpt.files import writing


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
    (tmp_path / "x.txt").write_text("To be")
    with pytest.raises(DataError, match="SHA-256 differs"):
        documents(ShakespeareData(path=tmp_path / "x.txt"))


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


# ------------------------------------------------------------------------------------------------- streams


def source_of(found: list[Document], *, identity: str = "x", clean: Any = as_it_is) -> Source:
    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        for number, document in enumerate(found[start.item :], start.item):
            yield document, Cursor(0, number + 1, number + 1)

    return Source("made up", identity, len(found), stream, clean)


def settings(**values: Any) -> FilesData:
    return FilesData.model_validate({"path": "nowhere", "tokenizer": {"kind": "bytes"}, **values})


def decoded(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split."""
    ids = corpus.tokens(split)
    ends = np.flatnonzero(ids == corpus.tokenizer.end_of_text)
    return [corpus.tokenizer.decode(part[part != corpus.tokenizer.end_of_text]) for part in np.split(ids, ends)]


MANY = [Document(str(i), f"text {i} " * (1 + i % 50)) for i in range(300)]


def upper_without_sevens(document: Document) -> Document | None:
    """A ``clean`` that other processes can find."""
    return None if "7" in document.text else replace(document, text=document.text.upper())


def test_shards_are_the_same_bytes_whatever_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 2000)
    source = source_of([*MANY, *MANY[:50]], clean=upper_without_sevens)
    config = settings(dedup=True, shard_tokens=10_000, tokenizer={"kind": "bpe", "vocab_size": 280})
    files: list[dict[str, bytes]] = []
    for workers in (0, 1, 2, 3):
        corpus = prepare_source(config, source, tmp_path / str(workers), workers=workers)
        files.append({p.name: p.read_bytes() for p in corpus.folder.iterdir()})
        assert len(corpus.shards) > 2
        assert (corpus.duplicates, corpus.dropped) == (45, 62)
        assert corpus.documents == 243
    assert files[0] == files[1] == files[2] == files[3]
    monkeypatch.setattr(pieces, "_PIECE", 100_000)
    again = prepare_source(config, source, tmp_path / "large")
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == files[0]


def test_shards_have_the_length_that_was_asked_for(tmp_path: Path) -> None:
    whole = prepare_source(settings(), source_of(MANY), tmp_path)
    cut = prepare_source(settings(shard_tokens=1000), source_of(MANY), tmp_path)
    assert cut.folder != whole.folder
    for split in ("train", "val"):
        assert np.array_equal(cut.tokens(split), whole.tokens(split))
        sizes = [shard.tokens for shard in cut.shards if shard.split == split]
        assert set(sizes[:-1]) == {1000}
        assert 0 < sizes[-1] <= 1000
    assert [s.file for s in cut.shards][:2] == ["train-000000.bin", "train-000001.bin"]


def test_the_counts_are_true(tmp_path: Path) -> None:
    text = [replace(d, text=d.text + "häß") for d in MANY]
    corpus = prepare_source(settings(), source_of(text), tmp_path)
    for split in ("train", "val"):
        found = decoded(corpus, split)
        assert corpus.counts[split] == Counts(
            documents=len(found),
            characters=sum(map(len, found)),
            bytes=sum(len(t.encode()) for t in found),
            tokens=corpus.count(split),
        )
    assert corpus.documents == sum(c.documents for c in corpus.counts.values()) == 300


def test_duplicates_go_only_when_asked(tmp_path: Path) -> None:
    twice = source_of([*MANY, *MANY])
    kept = prepare_source(settings(), twice, tmp_path)
    left_out = prepare_source(settings(dedup=True), twice, tmp_path)
    once = prepare_source(settings(dedup=True), source_of(MANY, identity="y"), tmp_path)
    assert (kept.documents, kept.duplicates) == (600, 0)
    assert (left_out.documents, left_out.duplicates) == (300, 300)
    assert left_out.fingerprint == once.fingerprint != kept.fingerprint


def in_parts(document: Document, size: int) -> list[Document]:
    text = document.text
    return [Document(document.name, text[at : at + size], at, len(text)) for at in range(0, max(len(text), 1), size)]


@pytest.mark.parametrize("split", ["tail", "hash"])
@pytest.mark.parametrize("size", [60, 61, 1000])
def test_a_document_in_parts_stays_one(tmp_path: Path, split: str, size: int) -> None:
    """With a tail the very same tokens; by hash whole documents on the side of their first part."""
    parts = [part for document in MANY for part in in_parts(document, size)]
    config = settings(split=split, dedup=True)
    corpus = prepare_source(config, source_of([*parts, *parts], identity="p"), tmp_path)
    assert corpus.documents == corpus.duplicates == 300
    if split == "tail":
        whole = prepare_source(config, source_of(MANY, identity="w"), tmp_path)
        assert corpus.fingerprint == whole.fingerprint
        assert corpus.counts == whole.counts
    else:
        assert sorted(decoded(corpus, "train") + decoded(corpus, "val")) == sorted(d.text for d in MANY)
        for split in ("train", "val"):
            firsts = [t[:size].encode() for t in decoded(corpus, split)]
            places = [int.from_bytes(hashlib.sha256(t).digest()[:8], "big") / 2**64 < 0.1 for t in firsts]
            assert set(places) == {split == "val"}


@pytest.mark.parametrize("split", ["tail", "hash"])
def test_merges_are_learned_from_the_training_side_of_parts_too(tmp_path: Path, split: str) -> None:
    config = settings(split=split, tokenizer={"kind": "bpe", "vocab_size": 300})
    parts = [part for document in MANY for part in in_parts(document, 10**6)]
    one = prepare_source(config, source_of(MANY), tmp_path / "a")
    other = prepare_source(config, source_of(parts), tmp_path / "b")
    assert one.fingerprint == other.fingerprint


def test_auto_reads_only_as_far_as_it_must(tmp_path: Path) -> None:
    class Far(Exception):
        pass

    def stream(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        yield from source_of(MANY).stream(start)
        raise Far

    source = Source("endless", "e", None, stream, as_it_is)
    with pytest.raises(Far):  # while encoding: the choice came before
        prepare_source(settings(), source, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_one_sided_hashes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put all 2 documents on one side.*'tail'"):
        prepare_source(settings(split="hash"), source_of(MANY[:2]), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_tails_that_stand_in_for_hashes_say_why(tmp_path: Path) -> None:
    said: list[str] = []
    above = [d for d in MANY if content_hash(d) / 2**64 >= 0.1][:44]
    corpus = prepare_source(settings(), source_of(above), tmp_path, say=said.append)
    assert corpus.split == "none of 44 documents fell to validation, so the last 10% of each document validates"
    assert corpus.split in said[0]
    few = prepare_source(settings(), source_of(above[:19], identity="y"), tmp_path)
    assert few.split == "the last 10% of each document validates"


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe"])
def test_white_space_alone_is_no_text(tmp_path: Path, tokenizer: str) -> None:
    blank = [Document("a", "\n\n\n"), Document("b", " \u3000")]
    config = settings(tokenizer={"kind": tokenizer})
    with pytest.raises(DataError, match="nothing but white space in made up"):
        prepare_source(config, source_of(blank), tmp_path)
    assert not list(tmp_path.iterdir())
    said: list[str] = []
    corpus = prepare_source(config, source_of([*MANY, *blank], identity="y"), tmp_path, say=said.append)
    assert (corpus.documents, corpus.dropped) == (300, 2)
    assert any("300 documents, 2 without text left out" in line for line in said)
    parts = [Document("c", " " * 50, 0, 100), Document("c", "word " * 10, 50, 100)]  # a part may be blank
    assert prepare_source(config, source_of([*MANY, *parts], identity="z"), tmp_path).documents == 301


def test_one_is_no_plural(tmp_path: Path) -> None:
    said: list[str] = []
    prepare_source(settings(), source_of([Document("a", "a text " * 9)]), tmp_path, say=said.append)
    assert "1 document, 63 characters" in said[0]


def test_a_second_call_reads_nothing_again(tmp_path: Path) -> None:
    first = prepare_source(settings(), source_of(MANY), tmp_path)

    def refuse(start: Cursor) -> Iterator[tuple[Document, Cursor]]:
        raise AssertionError("the text is read again")

    again = prepare_source(settings(), replace(source_of(MANY), stream=refuse), tmp_path)
    assert again.folder == first.folder
    with pytest.raises(AssertionError, match="read again"):
        prepare_source(settings(val_fraction=0.2), replace(source_of(MANY), stream=refuse), tmp_path)


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


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_is_done_outlives_a_full_disk_and_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = prepare_source(settings(dedup=True), source_of(MANY), tmp_path / "whole")
    monkeypatch.setattr(pieces, "_PIECE", 5000)
    monkeypatch.setattr(growing, "_COMMIT_SECONDS", 0.0)
    appended = 0
    append = ShardWriter.append

    def fails(writer: ShardWriter, ids: np.ndarray) -> None:
        nonlocal appended
        appended += 1
        if appended == 9:
            with writing(tmp_path):
                raise error
        append(writer, ids)

    monkeypatch.setattr(ShardWriter, "append", fails)
    said: list[str] = []
    expected = (OutputError, "the disk is full") if isinstance(error, OSError) else (KeyboardInterrupt, None)
    with pytest.raises(expected[0], match=expected[1]):
        prepare_source(settings(dedup=True), source_of(MANY), tmp_path / "c", say=said.append)
    [work] = (tmp_path / "c").iterdir()
    assert (work / "progress.json").exists()
    if isinstance(error, KeyboardInterrupt):
        assert f"stays in {work}: the same command goes on" in said[-1]
    again = prepare_source(settings(dedup=True), source_of(MANY), tmp_path / "c", say=said.append)
    assert any("going on at" in line for line in said)
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == {
        p.name: p.read_bytes() for p in whole.folder.iterdir()
    }
    assert not work.exists()


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

"""Documents in a stream: the same shards however they are cut, whoever works on them, and wherever it stopped."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.config import (
    FilesData,
)
from bonsaigpt.data import growing, pieces
from bonsaigpt.data.corpora.source import Cursor, Document, Source, as_it_is
from bonsaigpt.data.pieces import content_hash
from bonsaigpt.data.prepare import prepare_source
from bonsaigpt.data.shards import Corpus, Counts
from bonsaigpt.data.writing import ShardWriter
from bonsaigpt.errors import DataError, OutputError
from bonsaigpt.files import writing


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

"""Documents: their index, rows filled with whole ones, and masks."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.config import FilesData, StagedRamp, validate
from bonsaigpt.data import indexes
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.data.documents import document_starts
from bonsaigpt.data.indexes import Indexes
from bonsaigpt.data.packing import best_fit, packed_rows
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import open_source, prepare
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.files import file_aside, writing
from bonsaigpt.progress import silent

END = 256
BLOCK = 10


def stream_of(lengths: list[int], *, closed: bool = False) -> TokenStream:
    """Documents of these lengths with an end-of-text token after each, ``closed`` the last too; no id comes twice."""
    ids: list[int] = []
    for length in lengths:
        ids += [1000 + len(ids) + i for i in range(length)] + [END]
    return TokenStream.of(np.array(ids if closed else ids[:-1]))


def packed(lengths: list[int], *, mask: bool = False, seed: int = 1, batch: int = 4, **plan: object) -> TokenBatches:
    train = stream_of(lengths)
    index = document_starts(train, END, Indexes(), silent)
    return TokenBatches(
        train=train,
        val=TokenStream.of(np.array([65, 66, END, 67, 68] * 10)),
        tokenizer=ByteTokenizer(),
        order="packed",
        seed=seed,
        plan=BatchPlan(batch_size=batch, block_size=BLOCK, **plan),  # type: ignore[arg-type]
        fingerprint="packed",
        document_mask=mask,
        packed=packed_rows(index, block_size=BLOCK, end_of_text=END, indexes=Indexes(), advance=silent),
    )


@pytest.mark.parametrize("closed", [False, True])
def test_the_index_says_where_documents_start(closed: bool) -> None:
    stream = stream_of([3, 1, 5], closed=closed)
    index = document_starts(stream, END, Indexes(), silent)
    assert index.read(0, 9).tolist() == [0, 4, 6, len(stream)]


def test_the_index_is_kept_and_made_anew_where_it_does_not_fit(tmp_path: Path) -> None:
    one, other = Indexes((tmp_path,), "one"), Indexes((tmp_path,), "other")
    file = tmp_path / "train.documents.index"

    def made_anew(indexes: Indexes, lengths: list[int]) -> bool:
        before = file.stat().st_ino if file.exists() else None
        index = document_starts(stream_of(lengths), END, indexes, silent)
        whole = document_starts(stream_of(lengths), END, Indexes(), silent)
        assert np.array_equal(index.read(0, 99), whole.read(0, 99))
        assert [p.name for p in tmp_path.iterdir()] == [file.name]
        assert indexes.damaged() == []
        return file.stat().st_ino != before

    assert made_anew(one, [3, 1, 5])
    assert not made_anew(one, [3, 1, 5])
    assert made_anew(other, [3, 4, 2])  # the same number of documents and of tokens
    raw = file.read_bytes()
    for spoilt in (raw[:-3], raw[:-8], b"", raw[:9] + b"\x01" + raw[10:], raw[:-1] + bytes([raw[-1] ^ 1])):
        file.write_bytes(spoilt)
        assert other.damaged() == [file]
        assert made_anew(other, [3, 4, 2])
        assert file.read_bytes() == raw


def test_where_an_index_cannot_be_written_it_goes_elsewhere_and_at_last_into_memory(tmp_path: Path) -> None:
    blocked, free = tmp_path / "a file", tmp_path / "corpora" / ".indexes"
    blocked.write_text("in the way")
    said: list[str] = []
    first = document_starts(stream_of([3, 1, 5]), END, Indexes((blocked, free), "k", said.append), silent)
    assert [p.name for p in free.iterdir()] == ["train.documents.index"]
    assert said == []
    nowhere = Indexes((blocked, blocked / "deeper"), "k", said.append)
    second = document_starts(stream_of([3, 1, 5]), END, nowhere, silent)
    assert first.read(0, 9).tolist() == second.read(0, 9).tolist() == [0, 4, 6, 11]
    assert len(said) == 1
    assert "kept in memory" in said[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=60))
def test_best_fit_keeps_every_length_and_no_bin_overflows(lengths: list[int]) -> None:
    bins = best_fit(lengths, 100)
    assert sorted(n for row in bins for n in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[n] for n in row) for row in bins)
    assert not sums or sums[-1] <= 100
    assert len(sums) < 2 or sums[0] + sums[1] > 100  # two half-empty bins would have been one


LENGTHS = [3, 25, 1, 9, 10, 11, 4, 4, 2, 7, 30, 1, 1, 6]


@pytest.mark.parametrize("lengths", [LENGTHS, [50], [1, 1], LENGTHS * 40], ids=["mixed", "one", "two", "many"])
def test_every_token_but_the_first_is_a_target_once_an_epoch(lengths: list[int]) -> None:
    data = packed(lengths)
    for epoch in range(2):
        rows = data.rows_at(np.arange(epoch * data.windows, (epoch + 1) * data.windows))
        targets = rows.targets_BT[rows.targets_BT != IGNORE]
        assert np.array_equal(np.sort(targets), np.sort(data.train.read(1, len(data.train))))
        assert rows.count == len(targets)
        inputs = rows.tokens_BT[rows.targets_BT != IGNORE]
        ends = targets == END
        # An input is the token before its target; ids count upwards, so that can be seen.
        assert np.array_equal(inputs[~ends & (inputs != END)] + 1, targets[~ends & (inputs != END)])
    if len(lengths) > 100:
        assert rows.count / rows.targets_BT.size > 0.97  # short documents leave little room


def test_documents_that_fit_are_never_cut() -> None:
    data = packed(LENGTHS, mask=True)
    rows = data.rows_at(np.arange(data.windows))
    assert rows.documents_BT is not None
    for tokens, targets, documents in zip(rows.tokens_BT, rows.targets_BT, rows.documents_BT, strict=True):
        assert (np.diff(documents) >= 0).all()
        for number in range(int(documents.max()) + 1):
            inside = targets[(documents == number) & (targets != IGNORE)]
            if len(inside) and len(inside) < BLOCK:  # a whole document, or what full rows have left of one
                assert inside[-1] == END or inside[-1] == data.train.read(len(data.train) - 1, len(data.train))[0]
                assert (inside[:-1] != END).all()
        assert (tokens[targets == IGNORE] == END).all()


def test_packed_batches_are_pure_and_another_seed_is_another_order() -> None:
    one, other = packed(LENGTHS * 4), packed(LENGTHS * 4, seed=2)
    for step in (9, 0, 700, 9):
        assert np.array_equal(one.batch_at(step).tokens_BT, one.batch_at(step).tokens_BT)
    assert not np.array_equal(one.batch_at(0).tokens_BT, other.batch_at(0).tokens_BT)
    assert not np.array_equal(one.batch_at(0).tokens_BT, one.reordered(1).batch_at(0).tokens_BT)
    stacked = np.concatenate([packed(LENGTHS * 4, batch=2).batch_at(s).tokens_BT for s in range(2)])
    assert np.array_equal(one.batch_at(0).tokens_BT, stacked)


def test_a_short_context_cuts_documents_too() -> None:
    data = packed(LENGTHS * 4, mask=True, context_ramp=StagedRamp(sizes=(5,), until=(2,)))
    whole, cut = packed(LENGTHS * 4, mask=True).batch_at(1), data.batch_at(1)
    assert cut.tokens_BT.shape == (8, 5)
    assert cut.count == whole.count
    assert cut.documents_BT is not None
    assert whole.documents_BT is not None
    assert np.array_equal(cut.documents_BT.ravel(), whole.documents_BT.ravel())


def test_the_mask_of_windows_starts_a_document_at_each_end_of_text() -> None:
    data = TokenBatches(
        train=stream_of(LENGTHS * 4),
        val=TokenStream.of(np.array([65, 66, END, 67, 68] * 10)),
        tokenizer=ByteTokenizer(),
        order="shuffled",
        seed=1,
        plan=BatchPlan(batch_size=4, block_size=BLOCK),
        fingerprint="masked",
        document_mask=True,
    )
    for batch in [data.batch_at(3), *data.validation()]:
        assert batch.documents_BT is not None
        new = np.diff(batch.documents_BT, axis=1)
        assert np.array_equal(new == 1, batch.tokens_BT[:, 1:] == END)
        assert batch.documents_BT.dtype == np.int32
        half = batch.part(1, 2)
        assert half.documents_BT is not None
        assert np.array_equal(half.documents_BT, batch.documents_BT[len(batch.documents_BT) // 2 :])


NAMES = ["train.documents.index", "train.packed-32.pieces.index", "train.packed-32.rows.index"]


def test_packed_from_a_corpus_keeps_its_files_and_its_settings_are_checked(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"text {number} " * (1 + number % 7), encoding="utf-8")
    data = {"kind": "files", "path": str(texts), "order": "packed", "tokenizer": {"kind": "bytes"}}
    config = validate({"data": data, "model": {"block_size": 32}}, origin="t")
    one = open_source(config, tmp_path / "corpora")
    made = sorted((tmp_path / "corpora").rglob("*.index"))
    assert [p.name for p in made] == NAMES
    before = [p.stat().st_mtime_ns for p in made]
    two = open_source(config, tmp_path / "corpora")
    assert [p.stat().st_mtime_ns for p in made] == before
    assert np.array_equal(one.batch_at(5).tokens_BT, two.batch_at(5).tokens_BT)
    masked = validate({"data": data | {"document_mask": True}, "model": {"block_size": 32}}, origin="t")
    assert open_source(masked, tmp_path / "corpora").fingerprint != one.fingerprint
    assert len(list((tmp_path / "corpora").glob("files-*"))) == 1  # neither order nor mask changes the tokens
    chars = validate({"data": data | {"tokenizer": {"kind": "chars"}}}, origin="t")
    with pytest.raises(
        DataError, match=r"data.order = 'packed' needs to know where documents end.*tokenizer.kind bytes"
    ):
        open_source(chars, tmp_path / "corpora")
    with pytest.raises(ConfigError, match="document_mask cuts rows into documents"):
        validate({"data": data | {"order": "streams", "document_mask": True}}, origin="t")


def test_a_corpus_on_a_read_only_disk_is_packed_as_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"text {number} " * (1 + number % 7), encoding="utf-8")
    made = prepare(FilesData.model_validate({"path": texts, "tokenizer": {"kind": "bytes"}}), tmp_path / "disk")
    before = sorted(p.name for p in made.folder.iterdir())

    def read_only(path: Path) -> AbstractContextManager[Path]:
        if path.parent == made.folder:
            with writing(path):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
        return file_aside(path)

    monkeypatch.setattr(indexes, "file_aside", read_only)
    data = {"kind": "corpus", "path": str(made.folder), "order": "packed"}
    config = validate({"data": data, "model": {"block_size": 32}}, origin="t")
    one = open_source(config, tmp_path / "corpora")
    assert sorted(p.name for p in made.folder.iterdir()) == before
    assert sorted(p.name for p in (tmp_path / "corpora").rglob("*.index")) == NAMES
    monkeypatch.undo()
    two = open_source(config, tmp_path / "others")
    assert sorted(p.name for p in made.folder.glob("*.index")) == NAMES
    assert np.array_equal(one.batch_at(5).tokens_BT, two.batch_at(5).tokens_BT)

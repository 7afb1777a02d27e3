"""Windows and counts, against the whole split at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.config import FilesData
from bonsaigpt.data import looking
from bonsaigpt.data.looking import readable, split_stats, windows
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.shards import Corpus
from bonsaigpt.errors import DataError
from bonsaigpt.report.tokens import length_edges, length_ticks


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Forty documents in several shards, read in small blocks."""
    monkeypatch.setattr(looking, "_BLOCK", 97)
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i:02}.txt").write_text(f"{i} " + "bonsai " * i, encoding="utf-8")
    config = FilesData.model_validate({"path": texts, "tokenizer": {"kind": "bytes"}, "shard_tokens": 500})
    return prepare(config, tmp_path / "corpora")


def test_counts_are_those_of_the_whole(corpus: Corpus) -> None:
    told: list[tuple[str, int, int]] = []
    stats = split_stats(corpus, "train", lambda *line: told.append(line))
    ids = corpus.tokens("train")
    assert np.array_equal(stats.frequency, np.bincount(ids, minlength=257))
    assert stats.tokens == len(ids) == told[-1][1] == told[-1][2]
    lengths = [len(part) for part in bytes(np.where(ids == 256, 0, ids).astype(np.uint8)).split(b"\0")]
    assert stats.lengths is not None
    assert np.array_equal(stats.lengths, np.bincount(lengths, minlength=looking.LONGEST + 1))
    assert stats.length_quantile(0.5) == sorted(lengths)[(len(lengths) + 1) // 2 - 1]
    assert stats.length_quantile(1.0) == max(lengths)
    share = np.unique(ids, return_counts=True)[1] / len(ids)
    assert stats.entropy == pytest.approx(-(share * np.log(share)).sum())
    assert stats.used == len(share)


def test_windows_are_stretches_of_the_split_and_follow_the_seed(corpus: Corpus) -> None:
    ids = corpus.tokens("train")
    found = list(windows(corpus, "train", count=20, length=700, seed=1))
    for start, window in found:
        assert np.array_equal(window, ids[start : start + 700])
    assert len({start for start, _ in found}) > 10
    again = [start for start, _ in windows(corpus, "train", count=20, length=700, seed=1)]
    other = [start for start, _ in windows(corpus, "train", count=20, length=700, seed=2)]
    assert again == [start for start, _ in found] != other
    [(start, everything)] = windows(corpus, "train", count=1, length=10**9, seed=1)
    assert start == 0
    assert np.array_equal(everything, ids)


def test_the_end_of_text_is_spelled_out(corpus: Corpus) -> None:
    ids = np.array([256, *b"ab", 256, 256, *b"c", 256], dtype=np.uint16)
    end = "<|endoftext|>"
    assert readable(corpus, ids) == f"{end}ab{end}{end}c{end}"


def test_ids_outside_the_vocabulary_are_said(corpus: Corpus) -> None:
    [shard] = [s for s in corpus.shards if s.split == "val"][:1]
    ids = np.fromfile(corpus.folder / shard.file, dtype=np.uint16)
    ids[5] = 999
    ids.tofile(corpus.folder / shard.file)
    with pytest.raises(DataError, match=r"token 999.*data verify"):
        split_stats(corpus, "val", lambda *_: None)


@pytest.mark.parametrize(("lowest", "highest"), [(95, 134), (1, 9), (1, 20_000), (120, 120), (5, 6), (300, 2_500)])
def test_bars_of_lengths_cover_the_range_and_can_be_read(lowest: int, highest: int) -> None:
    edges, is_wide = length_edges(lowest, highest)
    assert edges[0] < lowest
    assert edges[-1] > highest
    assert (np.diff(edges) >= 1).all()
    assert len(edges) > min(8, highest - lowest + 1)  # two lengths are told apart where there are few
    assert is_wide == (highest >= 8 * lowest)
    if is_wide:  # a quarter octave, but for rounding
        assert (edges[1:] <= edges[:-1] * 2**0.25 + 1.5).all()
    ticks = length_ticks(edges[0], edges[-1], is_wide)
    assert min(3, highest - lowest + 1) <= len(ticks) <= 12
    assert all(edges[0] <= tick <= edges[-1] for tick in ticks)

"""Token streams: windows over any shards, at any size, without holding them."""

from __future__ import annotations

import gc
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import ArrayShard, Files, FileShard, ImaginaryShard, TokenStream
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError

HUGE = 10**12
SIZES = [7, 1, 30, 0, 2, 60]


def on_disk(folder: Path, *, files: Files | None = None, limit: int | None = None) -> TokenStream:
    """100 ids that count upwards, in six files, one of them empty."""
    ids, shards = np.arange(100, dtype=np.uint16), []
    for number, (end, size) in enumerate(zip(np.cumsum(SIZES).tolist(), SIZES, strict=True)):
        path = folder / f"{number}.bin"
        ids[end - size : end].tofile(path)
        shards.append(FileShard(path, size, files))
    return TokenStream(shards, np.uint16, limit=limit)


def imaginary(tokens: int = HUGE, shards: int = 400) -> TokenStream:
    """So many ids in shards of unequal size: each tells its place, modulo 65521."""
    edges = np.linspace(0, tokens, shards + 1, dtype=np.int64)
    parts = [
        ImaginaryShard(b - a, lambda places, first=a: (places + first) % 65521) for a, b in pairwise(edges.tolist())
    ]
    return TokenStream(parts, np.uint16)


@pytest.mark.parametrize("length", [1, 8, 33, 100])
def test_windows_cross_shards(tmp_path: Path, length: int) -> None:
    stream = on_disk(tmp_path, files=Files(most=2))  # files are closed and opened again on the way
    starts = np.random.default_rng(1).integers(0, 101 - length, 50)
    assert np.array_equal(stream.gather(starts, length), starts[:, None] + np.arange(length))
    assert stream.gather(starts, length).dtype == np.int64
    assert np.array_equal(stream.read(5, 5 + length), np.arange(5, min(100, 5 + length)))
    assert np.array_equal(np.concatenate([piece for _, piece in stream.pieces(3)]), np.arange(3, 100))


def test_windows_at_the_far_end_of_a_huge_stream() -> None:
    starts = np.array([0, HUGE // 400 - 5, 5 * HUGE // 400 - 1, HUGE - 65])
    assert np.array_equal(imaginary().gather(starts, 65), (starts[:, None] + np.arange(65)) % 65521)


def test_an_id_outside_the_vocabulary_names_file_and_byte(tmp_path: Path) -> None:
    stream = on_disk(tmp_path, limit=70)
    assert stream.gather(np.array([60]), 10).max() == 69
    with pytest.raises(
        DataError, match=rf"{re.escape(str(tmp_path / '5.bin'))} holds the id 74 at token 34 \(byte 68\)"
    ):
        stream.gather(np.array([0, 65, 3]), 10)


def test_a_shard_that_was_cut_short_or_deleted_is_named(tmp_path: Path) -> None:
    stream = on_disk(tmp_path)
    (tmp_path / "5.bin").write_bytes(b"\0" * 50)
    with pytest.raises(DataError, match=r"5\.bin ends at byte 50, but has to hold 60 tokens"):
        stream.gather(np.array([80]), 10)
    (tmp_path / "2.bin").unlink()
    with pytest.raises(DataError, match=r"2\.bin cannot be read: No such file"):
        stream.gather(np.array([0]), 20)


def test_files_are_closed_with_their_stream(tmp_path: Path) -> None:
    """An open one would be a warning, and warnings are errors here."""
    files = Files()
    on_disk(tmp_path, files=files).gather(np.array([0]), 100)
    held = list(files._open.values())
    assert len(held) == 5
    assert not any(file.closed for file in held)
    del files
    gc.collect()
    assert all(file.closed for file in held)


def huge(order: str) -> TokenBatches:
    return TokenBatches(
        train=imaginary(),
        val=TokenStream.of(np.arange(100)),
        tokenizer=ByteTokenizer(),
        order=order,
        seed=1,
        plan=BatchPlan(batch_size=12, block_size=64),
        fingerprint="huge",
    )


@pytest.mark.parametrize("order", ["shuffled", "random", "streams"])
def test_batches_of_a_huge_stream(order: str) -> None:
    """Places beyond 2^32 are right, and steps at the end of the first epoch as quick as those at its beginning."""
    data = huge(order)
    for step in (0, 10**9, data.windows // 12):
        batch, starts = data.batch_at(step), data.starts(data.plan.samples(step))
        assert starts.min() >= 0
        assert starts.max() + 65 <= HUGE
        assert np.array_equal(batch.tokens_BT, (starts[:, None] + np.arange(64)) % 65521)
        assert np.array_equal(batch.targets_BT, (starts[:, None] + np.arange(1, 65)) % 65521)
    assert data.starts(np.arange(10_000)).max() > HUGE // 2 or order == "streams"


def test_shuffled_visits_every_window_of_a_huge_stream_once() -> None:
    """Exhaustive on small sizes (test_batches.py); here by sampling: windows of distinct samples are distinct, lie on
    the grid, and spread evenly over the whole."""
    data = huge("shuffled")
    samples = np.unique(np.random.default_rng(2).integers(0, data.windows, 200_000))
    starts = data.starts(samples)
    assert len(np.unique(starts)) == len(samples)
    assert len(np.unique(starts % 64)) == 1
    # Tenths of the stream: binomial, standard deviation sqrt(n * 0.09) = 134; five of them.
    assert abs(np.bincount(starts * 10 // HUGE, minlength=10) - len(samples) / 10).max() < 671
    again = data.starts(samples + data.windows)  # the next epoch: another order
    assert not np.array_equal(starts - starts.min(), again - again.min())


@pytest.mark.parametrize("windows", [1, 2, 3, 5, 17, 256, 1000])
def test_shuffled_is_a_permutation_for_every_size(windows: int) -> None:
    data = TokenBatches(
        train=imaginary((windows + 1) * 4 + 1, shards=3),
        val=TokenStream.of(np.arange(100)),
        tokenizer=ByteTokenizer(),
        order="shuffled",
        seed=1,
        plan=BatchPlan(batch_size=2, block_size=4),
        fingerprint="small",
    )
    assert data.windows == windows
    for epoch in range(2):
        starts = np.sort(data.starts(np.arange(epoch * windows, (epoch + 1) * windows)))
        assert np.array_equal(np.diff(starts), np.full(windows - 1, 4))


def test_shards_in_memory_and_on_disk_are_one(tmp_path: Path) -> None:
    ids = np.arange(100, dtype=np.uint16)
    mixed = TokenStream([ArrayShard(ids[:40]), FileShard(tmp_path / "b.bin", 60)], np.uint16)
    ids[40:].tofile(tmp_path / "b.bin")
    assert np.array_equal(mixed.gather(np.array([35]), 20)[0], np.arange(35, 55))

"""``batch_at(step)``: pure, complete, and in the promised order."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt.config import LinearRamp, StagedRamp
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.stream import TokenStream
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.data.windows import TokenBatches
from bonsaigpt.errors import DataError


def source(
    order: str = "shuffled", *, tokens: int = 1000, batch: int = 4, block: int = 10, seed: int = 1
) -> TokenBatches:
    """A source whose training ids count upwards, so that a window shows where it was cut."""
    return TokenBatches(
        train=TokenStream.of(np.arange(tokens, dtype=np.uint16)),
        val=TokenStream.of(np.arange(57, dtype=np.uint16) % 251),
        tokenizer=ByteTokenizer(),
        order=order,
        seed=seed,
        plan=BatchPlan(batch_size=batch, block_size=block),
        fingerprint="test",
    )


@pytest.mark.parametrize("order", ["shuffled", "random", "streams"])
def test_batches_are_a_pure_function_of_the_step(order: str) -> None:
    data = source(order)
    steps = [0, 7, 1, 500, 7]
    there, back = [data.batch_at(s) for s in steps], [data.batch_at(s) for s in reversed(steps)]
    for a, b in zip(there, reversed(back), strict=True):
        assert np.array_equal(a.tokens_BT, b.tokens_BT)
    for batch in there:
        assert batch.tokens_BT.dtype == np.int64
        assert batch.count == batch.targets_BT.size == 40
        assert np.array_equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
        assert np.array_equal(batch.targets_BT, batch.tokens_BT + 1)


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_the_seed_changes_the_order(order: str) -> None:
    assert not np.array_equal(source(order, seed=1).batch_at(0).tokens_BT, source(order, seed=2).batch_at(0).tokens_BT)


def test_shuffled_visits_every_window_once_an_epoch() -> None:
    data = source()
    for epoch in range(3):
        starts = np.sort(data.starts(np.arange(epoch * data.windows, (epoch + 1) * data.windows)))
        assert np.array_equal(starts, starts[0] + 10 * np.arange(data.windows))
        assert starts[0] >= 0
        assert starts[-1] + 10 < 1000
    epochs = [data.starts(np.arange(e * data.windows, (e + 1) * data.windows)) for e in range(5)]
    assert not np.array_equal(epochs[0] - epochs[0].min(), epochs[1] - epochs[1].min())
    assert len({starts.min() for starts in epochs}) > 2  # the grid moves


def test_the_global_order_does_not_depend_on_the_batch_size() -> None:
    """So it does not depend on how many processes share a batch either."""
    for order in ("shuffled", "random"):
        big, small = source(order, batch=12), source(order, batch=3)
        stacked = np.concatenate([small.batch_at(s).tokens_BT for s in range(4)])
        assert np.array_equal(big.batch_at(0).tokens_BT, stacked)


def test_streams_go_on_where_they_were_and_say_when_they_start_anew() -> None:
    data = source("streams")
    batches = [data.batch_at(s) for s in range(26)]
    segments = (1000 - 1) // 4 // 10
    for step in range(1, 26):
        carried = np.array_equal(batches[step].tokens_BT[:, 0], batches[step - 1].targets_BT[:, -1])
        reset = batches[step].reset_B
        assert reset is not None
        assert carried == (step % segments != 0)
        assert reset.all() == (not carried)
    rows = np.concatenate([b.tokens_BT for b in batches[:segments]], axis=1)
    assert len(np.unique(rows)) == rows.size  # rows are disjoint parts of the text


def test_random_covers_the_text_evenly() -> None:
    starts = source("random", tokens=111, block=10).starts(np.arange(50_000))
    assert starts.min() == 0
    assert starts.max() == 100
    counts = np.bincount(starts, minlength=101)
    # Poisson with mean 495: standard deviation 22; five of them.
    assert abs(counts - 495).max() < 112


def test_validation_scores_every_token_but_the_first_exactly_once() -> None:
    data = source(block=10)
    batches = list(data.validation())
    targets = np.concatenate([b.targets_BT.ravel() for b in batches])
    assert np.array_equal(targets[targets != IGNORE], data.val.read(1, 57))
    assert sum(b.count for b in batches) == data.validation_count() == 56
    again = np.concatenate([b.targets_BT.ravel() for b in data.validation()])
    assert np.array_equal(targets, again)


@pytest.mark.parametrize("length", [1, 4, 7, 10])
def test_validation_in_windows_of_another_length_scores_the_same_targets(length: int) -> None:
    data = replace(source(block=10), eval_block_size=length)
    batches = list(data.validation())
    assert np.array_equal(np.concatenate([b.targets_BT.ravel() for b in batches]), data.val.read(1, 57))
    assert max(b.tokens_BT.shape[1] for b in batches) == length
    assert np.array_equal(data.batch_at(3).tokens_BT, source(block=10).batch_at(3).tokens_BT)


def test_validation_bytes_counts_what_the_targets_stand_for() -> None:
    data = replace(source(), val=TokenStream.of(np.array([65, 66, 256, 67, 256] * 5, dtype=np.uint16)))
    assert data.validation_bytes() == 3 * 5 - 1  # end-of-text adds none, and the first token is no target


def test_the_shortest_text_that_works_and_one_token_less() -> None:
    assert source(tokens=11).batch_at(3).tokens_BT.tolist() == [list(range(10))] * 4
    with pytest.raises(DataError, match=r"training split has 10 tokens.*at least 11"):
        source(tokens=10)
    with pytest.raises(DataError, match="streams, shorter than one block"):
        source("streams", tokens=40)


@pytest.mark.parametrize(
    ("order", "digest"),
    [("shuffled", "16d91e3cfcdf61e3"), ("random", "389115b1e9d8d4c3"), ("streams", "3f2fe3897ae61863")],
)
def test_the_orders_of_older_runs_are_kept_bit_for_bit(order: str, digest: str) -> None:
    """A run of an older version goes on with the batches that it would have seen."""
    ramps = {"batch_ramp": LinearRamp(start=1, steps=5), "context_ramp": StagedRamp(sizes=(4,), until=(3,))}
    data = TokenBatches(
        train=TokenStream.of((np.arange(5000) * 7919 % 251).astype(np.uint16)),
        val=TokenStream.of(np.arange(57)),
        tokenizer=ByteTokenizer(),
        order=order,
        seed=1337,
        plan=BatchPlan(batch_size=6, block_size=16, **({} if order == "streams" else ramps)),
        fingerprint="x",
    )
    batches = [data.batch_at(step) for step in (0, 1, 2, 7, 100, 12345)]
    each = [hashlib.sha256(b.tokens_BT.tobytes() + b.targets_BT.tobytes()).hexdigest()[:16] for b in batches]
    assert hashlib.sha256("".join(each).encode()).hexdigest()[:16] == digest

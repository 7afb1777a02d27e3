"""Ramps of batch and context: every sample once, tokens kept, lengths that divide the block."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.config import LinearRamp, NoRamp, Ramp, StagedRamp
from bonsaigpt.data.plan import BatchPlan, ramp_size
from tests.data.test_batches import source

RAMPS: list[Ramp] = [NoRamp(), LinearRamp(start=1, steps=7), StagedRamp(sizes=(2, 3), until=(4, 6))]


def test_sizes_by_hand() -> None:
    assert [ramp_size(LinearRamp(start=2, steps=4), 10, s) for s in range(6)] == [2, 4, 6, 8, 10, 10]
    assert [ramp_size(StagedRamp(sizes=(2, 3), until=(2, 3)), 5, s) for s in range(5)] == [2, 2, 3, 5, 5]
    assert [ramp_size(NoRamp(), 5, s) for s in (0, 9)] == [5, 5]
    assert [ramp_size(LinearRamp(start=20, steps=2), 10, s) for s in range(3)] == [20, 15, 10]  # downwards too


@pytest.mark.parametrize("ramp", RAMPS, ids=lambda r: r.kind)
def test_no_sample_is_left_out_and_none_comes_twice(ramp: Ramp) -> None:
    plan = BatchPlan(batch_size=4, block_size=10, batch_ramp=ramp)
    numbers = np.concatenate([plan.samples(step) for step in range(12)])
    assert np.array_equal(numbers, np.arange(len(numbers)))
    assert len(numbers) == sum(plan.rows(step) for step in range(12))
    # Stateless: any step alone, in any order.
    assert np.array_equal(plan.samples(11), numbers[-4:])


def test_contexts_are_divisors_of_the_block() -> None:
    plan = BatchPlan(batch_size=1, block_size=12, context_ramp=LinearRamp(start=1, steps=12))
    lengths = [plan.context(step) for step in range(14)]
    assert lengths == [1, 1, 2, 3, 4, 4, 6, 6, 6, 6, 6, 6, 12, 12]
    assert all(12 % length == 0 for length in lengths)


def test_a_short_context_cuts_the_same_windows() -> None:
    """The tokens of a step are those of the full windows, in shorter rows; no target is lost."""
    whole = source("shuffled", tokens=1000, batch=3, block=10)
    plan = BatchPlan(batch_size=3, block_size=10, context_ramp=StagedRamp(sizes=(5,), until=(2,)))
    ramped = type(whole)(**{**vars(whole), "plan": plan})
    for step in (0, 1):
        one, other = whole.batch_at(step), ramped.batch_at(step)
        assert other.tokens_BT.shape == (6, 5)
        assert other.count == one.count
        assert np.array_equal(other.tokens_BT.ravel(), one.tokens_BT.ravel())
        assert np.array_equal(other.targets_BT.ravel(), one.targets_BT.ravel())
    assert np.array_equal(whole.batch_at(2).tokens_BT, ramped.batch_at(2).tokens_BT)


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_another_order_is_another_order_of_the_same_data(order: str) -> None:
    data = source(order)
    again = data.reordered(1)
    assert not np.array_equal(data.batch_at(0).tokens_BT, again.batch_at(0).tokens_BT)
    assert np.array_equal(again.batch_at(5).tokens_BT, data.reordered(1).batch_at(5).tokens_BT)
    assert not np.array_equal(again.batch_at(0).tokens_BT, data.reordered(2).batch_at(0).tokens_BT)
    assert again.fingerprint == data.fingerprint

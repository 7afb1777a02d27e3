"""The set of hashes says exactly what was there before."""

from __future__ import annotations

import numpy as np

from bonsaigpt.data.seen import Seen


def test_it_agrees_with_a_set() -> None:
    draws = np.random.default_rng(1).integers(0, 3000, size=10_000, dtype=np.uint64)
    draws[::7] += np.uint64(2**63)
    seen, known = Seen(), set[int]()
    for part in np.array_split(draws, 137):
        expected = []
        for value in part.tolist():
            expected.append(value not in known)
            known.add(value)
        assert seen.add(part).tolist() == expected
        assert len(seen) == len(known)


def test_nothing_is_nothing() -> None:
    seen = Seen()
    assert seen.add(np.empty(0, dtype=np.uint64)).tolist() == []
    assert len(seen) == 0
    assert seen.add(np.array([5, 5], dtype=np.uint64)).tolist() == [True, False]
    assert seen.add(np.empty(0, dtype=np.uint64)).tolist() == []


def test_it_keeps_few_arrays() -> None:
    seen = Seen()
    for start in range(0, 64_000, 64):
        assert seen.add(np.arange(start, start + 64, dtype=np.uint64)).all()
    assert len(seen._levels) <= 11  # each is at least twice as long as the next
    assert not seen.add(np.arange(64_000, dtype=np.uint64)).any()

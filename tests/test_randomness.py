"""Randomness without state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.randomness import generator, hash64, key, permute, uniform


def test_golden_values_never_change() -> None:
    """Changing the mixer would silently change every run that is ever resumed or replayed."""
    assert key(1337, "dropout", 3) == 2436758018130246015
    assert hash64(42, np.arange(3)).tolist() == [12058926934050108962, 13679457532755275413, 2949826092126892291]
    assert permute(7, np.arange(8), 8).tolist() == [0, 1, 5, 3, 7, 6, 2, 4]


def test_keys_tell_their_parts_apart() -> None:
    assert len({key(1, 23), key(12, 3), key("1", "2", 3), key(123)}) == 4


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_a_permutation_visits_everything_once(size: int, seed: int) -> None:
    assert sorted(permute(seed, np.arange(size), size).tolist()) == list(range(size))


def test_a_permutation_of_many_elements_needs_no_memory_for_them() -> None:
    size = 10**15
    out = permute(3, np.arange(1000), size)
    assert len(set(out.tolist())) == 1000
    assert out.min() >= 0
    assert out.max() < size
    assert out.max() > 0.9 * size  # it does not stay near the start


def test_permutations_differ_by_key_and_look_shuffled() -> None:
    a, b = permute(1, np.arange(1000), 1000), permute(2, np.arange(1000), 1000)
    assert not np.array_equal(a, b)
    # Rank correlation of a random permutation has standard deviation 1 / sqrt(n - 1) = 0.032: five of them.
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.16


def test_uniform_is_uniform() -> None:
    draws = uniform(key("test"), np.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    # Mean of n uniforms: standard deviation 1 / sqrt(12 n) = 0.0009: five of them.
    assert abs(draws.mean() - 0.5) < 0.0046


def test_generators_of_one_name_start_equal() -> None:
    assert generator(1, "a").random() == generator(1, "a").random()
    assert generator(1, "a").random() != generator(1, "b").random()


def test_an_empty_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        permute(1, np.arange(0), 0)

"""Figures as people read them, at the edges between two units above all."""

from __future__ import annotations

import pytest

from bonsaigpt.units import count, duration, named, quantity, size


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (812, "812"),
        (999, "999"),
        (999.6, "1 k"),
        (1000, "1 k"),
        (803_072, "803 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (999_999, "1 M"),
        (1_536_000, "1.54 M"),
        (999_999_999, "1 G"),
    ],
)
def test_counts(number: float, words: str) -> None:
    assert count(number) == words


@pytest.mark.parametrize(
    ("number", "unit", "words"),
    [
        (7.93e12, "FLOP", "7.93 TFLOP"),
        (9.999e14, "FLOP/s", "1 PFLOP/s"),
        (4.12e10, "FLOP/s", "41.2 GFLOP/s"),
        (2.25e15, "FLOP/s", "2.25 PFLOP/s"),
        (3.1e18, "FLOP", "3.1 EFLOP"),
        (12, "B/s", "12 B/s"),
    ],
)
def test_quantities(number: float, unit: str, words: str) -> None:
    assert quantity(number, unit) == words


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (2048, "2 KiB"),
        (35.87 * 2**20, "35.87 MiB"),
        (1000 * 2**20, "1,000 MiB"),
        (2**20 - 1, "1 MiB"),
        (2**30 - 1, "1 GiB"),
        (24 * 2**30, "24 GiB"),
        (3 * 2**50, "3 PiB"),
    ],
)
def test_sizes(held: float, words: str) -> None:
    assert size(held) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"),
        (0.0408, "40.8 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (2.34, "2.34 s"),
        (59.2, "59.2 s"),
        (59.96, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (25_500, "7 h 5 min"),
        (86_369, "23 h 59 min"),
        (86_399, "1 day 0 h"),
        (180_000, "2 days 2 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_one_is_one() -> None:
    assert [named(n, "thread") for n in (0, 1, 2, 2000)] == ["0 threads", "1 thread", "2 threads", "2,000 threads"]

"""Intervals and p-values against printed tables, a classic data set, and the integral of the density."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bonsaigpt.measure.statistics import estimate, paired_difference, student_t_critical, student_t_within

# Two-sided critical values as printed tables give them: level, degrees of freedom, t.
TABLE = [
    (0.90, 1, 6.313752),
    (0.90, 5, 2.015048),
    (0.95, 1, 12.706205),
    (0.95, 2, 4.302653),
    (0.95, 3, 3.182446),
    (0.95, 4, 2.776445),
    (0.95, 5, 2.570582),
    (0.95, 10, 2.228139),
    (0.95, 30, 2.042272),
    (0.95, 120, 1.979930),
    (0.99, 4, 4.604095),
    (0.99, 10, 3.169273),
    (0.999, 2, 31.599055),
]

# Student 1908: additional hours of sleep that ten patients gained by two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.mark.parametrize(("level", "dof", "t"), TABLE)
def test_critical_values_are_those_of_the_tables(level: float, dof: int, t: float) -> None:
    assert student_t_critical(level, dof) == pytest.approx(t, abs=6e-7)
    assert student_t_within(t, dof) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 8, 25])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 12.0])
def test_probability_is_the_integral_of_the_density(t: float, dof: int) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = t * (nodes + 1) / 2
    scale = math.gamma((dof + 1) / 2) / math.sqrt(dof * math.pi) / math.gamma(dof / 2)
    integral = 2 * scale * float(np.sum(weights * (1 + x**2 / dof) ** (-(dof + 1) / 2))) * t / 2
    assert student_t_within(t, dof) == pytest.approx(integral, abs=1e-12)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert student_t_critical(0.95, 10_000) == pytest.approx(1.959964, abs=3e-4)
    assert student_t_critical(0.95, 4) > 1.4 * 1.959964, "the control: with five values it is far from normal"


def test_estimate() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))  # n - 1 under the root, not n
    assert found.margin == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_students_own_data() -> None:
    found = paired_difference(SECOND, FIRST)
    assert found.mean == pytest.approx(1.58)
    assert found.low == pytest.approx(0.7001142, abs=1e-7)
    assert found.high == pytest.approx(2.4598858, abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.is_significant
    back = paired_difference(FIRST, SECOND)
    assert back.p == found.p
    assert back.mean == -found.mean
    torn = paired_difference(sorted(SECOND), sorted(FIRST, reverse=True))
    assert torn.p is not None
    assert torn.p > 0.05, "the control: other pairs of the same numbers show nothing"
    assert not torn.is_significant


def test_the_interval_leaves_zero_out_exactly_when_p_is_small() -> None:
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        values, base = generator.normal(1.2, 1.0, size=4), generator.normal(0.0, 1.0, size=4)
        found = paired_difference(values.tolist(), base.tolist(), level=0.9)
        assert found.low is not None
        assert found.high is not None
        outside = not found.low <= 0.0 <= found.high
        assert found.is_significant == outside
        seen.add(outside)
    assert seen == {True, False}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(7)
    draws = generator.normal(3.0, 2.0, size=(4000, 3))
    found = [estimate(row) for row in draws.tolist()]
    held = sum(abs(f.mean - 3.0) <= (f.margin or 0.0) for f in found) / len(found)
    normal = sum(abs(f.mean - 3.0) <= 1.96 * (f.standard_error or 0.0) for f in found) / len(found)
    assert held == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
    assert normal < 0.85, "the control: 1.96 standard errors of three values hold it far too seldom"


def test_one_value_has_no_interval() -> None:
    alone = estimate([2.5])
    assert (alone.mean, alone.n) == (2.5, 1)
    assert alone.standard_error is alone.margin is alone.low is alone.high is None
    pair = paired_difference([2.5], [2.0])
    assert pair.mean == 0.5
    assert pair.p is None
    assert not pair.is_significant


def test_text() -> None:
    assert estimate([1.0, 2.0, 3.0]).text(".2f") == "2.00 ± 2.48"
    assert paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).text("+.2f") == "+2.00 ± 2.48"
    assert estimate([2.5]).text() == "2.5000"


def test_equal_differences() -> None:
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p == 0.0
    assert paired_difference([2.0, 3.0], [2.0, 3.0]).p == 1.0


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_cannot_be_averaged(values: list[float]) -> None:
    with pytest.raises(ValueError, match="statistics need"):
        estimate(values)


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("level", "dof"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_impossible_intervals(level: float, dof: int) -> None:
    with pytest.raises(ValueError, match="an interval needs"):
        student_t_critical(level, dof)

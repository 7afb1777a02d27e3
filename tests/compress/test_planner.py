"""The planner: never above the budget, as good as trying everything on small cases, curves that are true where they can
be checked."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from bonsaigpt.compress.candidates import at_size, calibrated, candidates, shapes
from bonsaigpt.compress.exact import output_error, truncated_svd, van_loan, whitened_svd
from bonsaigpt.compress.fit import fit
from bonsaigpt.compress.narrow import NarrowCandidate, narrow_candidates, units_to_keep
from bonsaigpt.compress.planner import Option, allocate, hull, smallest_within
from bonsaigpt.config import NarrowStructure
from bonsaigpt.structure import Kronecker

random = np.random.default_rng(5)


def option(stored: int, loss: float) -> Option:
    return Option(NarrowCandidate(NarrowStructure(hidden=1), stored, 0.0, 0.0, 0), loss)


def weights(count: int, sizes: int, *, convex: bool) -> list[list[Option]]:
    """Sizes 10, 20, ... with falling losses; the last one, dense, loses nothing."""
    found = []
    for _ in range(count):
        drops = random.random(sizes)
        drops = np.sort(drops) if convex else drops
        found.append([option(10 * (i + 1), float(drops[: sizes - 1 - i].sum())) for i in range(sizes)])
    return found


def total(chosen: list[Option]) -> tuple[int, float]:
    return sum(o.stored for o in chosen), sum(o.loss for o in chosen)


def best(choices: list[list[Option]], budget: int) -> float:
    return min(loss for stored, loss in map(total, map(list, product(*choices))) if stored <= budget)


@pytest.mark.parametrize("budget", range(30, 160, 10))
def test_greed_is_exact_on_convex_curves(budget: int) -> None:
    choices = weights(3, 5, convex=True)
    found = allocate(choices, budget)
    assert found is not None
    stored, loss = total(found)
    assert stored <= budget
    assert loss == pytest.approx(best(choices, budget), abs=1e-12)
    even = [max((o for o in each if o.stored <= budget / 3), key=lambda o: o.stored) for each in choices]
    assert loss <= total(even)[1] + 1e-12


def test_on_any_curves_it_is_near_the_best_and_within_the_budget() -> None:
    for _ in range(30):
        choices = weights(3, 5, convex=False)
        budget = int(random.integers(3, 15)) * 10
        found = allocate(choices, budget)
        assert found is not None
        stored, loss = total(found)
        assert stored <= budget
        # What the relaxation may leave is less than one step of one hull.
        steps = [a.loss - b.loss for each in choices for a, b in pairwise(hull(each))]
        assert loss <= best(choices, budget) + max(steps, default=0.0) + 1e-12


def test_too_small_a_budget_has_no_plan_and_a_loss_has_the_smallest() -> None:
    choices = weights(3, 5, convex=True)
    assert allocate(choices, 29) is None
    assert total(smallest_within(choices, 0.0)) == (150, 0.0)
    assert total(smallest_within(choices, 1e9))[0] == 30
    some = smallest_within(choices, 1.0)
    assert total(some)[1] <= 1.0
    assert total(some)[0] < 150


def test_a_hull_is_convex_and_below_all() -> None:
    choices = [option(int(s), float(x)) for s, x in zip(random.integers(1, 99, 40), random.random(40), strict=True)]
    found = hull(choices)
    slopes = [(a.loss - b.loss) / (b.stored - a.stored) for a, b in pairwise(found)]
    assert slopes == sorted(slopes, reverse=True)
    assert min(slopes) > 0
    for c in choices:
        at = np.interp(c.stored, [o.stored for o in found], [o.loss for o in found])
        assert c.loss >= at - 1e-12


# ------------------------------------------------------------------------------------ candidates


W = random.standard_normal((24, 16))
X = random.standard_normal((300, 16)) @ random.standard_normal((16, 16))
C = X.T @ X / len(X)


def test_low_rank_curves_are_exact() -> None:
    [curve] = candidates("lowrank", W, C)
    for candidate in curve:
        rank = candidate.structure.rank
        U, V = whitened_svd(W, C, rank)
        assert candidate.error == pytest.approx(output_error(W, U @ V, C), abs=1e-9)
        U, V = truncated_svd(W, rank)
        assert 1 - candidate.energy == pytest.approx(np.square(W - U @ V).sum() / np.square(W).sum(), abs=1e-9)
    assert len({round(c.error, 6) for c in curve}) == len(curve)


@pytest.mark.parametrize("kind", ["kronecker", "kronecker+sparse", "monarch", "lowrank"])
def test_every_candidate_is_legal_smaller_and_better_the_larger(kind: str) -> None:
    curves = candidates(kind, W, C)
    assert curves
    for curve in curves:
        for candidate in curve:
            candidate.setting.check("w", 24, 16)
            assert candidate.stored < W.size
            assert candidate.words
        assert all(b.error <= a.error + 1e-9 and b.stored > a.stored for a, b in pairwise(curve))


def test_in_a_separable_metric_kronecker_curves_are_exact() -> None:
    C1, C2 = (Y.T @ Y / 50 for Y in (random.standard_normal((50, 4)), random.standard_normal((50, 4))))
    both = np.kron(C1, C2)
    curve = next(c for c in candidates("kronecker", W, both) if getattr(c[0].setting, "a_shape", ()) == (6, 4))
    for candidate in curve:
        real = candidate.structure.expand(fit(candidate.structure, W, both))
        assert candidate.error == pytest.approx(output_error(W, real, both), rel=1e-3, abs=1e-5)
        A, B = van_loan(W, (6, 4), candidate.structure.terms)
        near = Kronecker(24, 16, (6, 4), len(A), False).expand({"A": A, "B": B})
        assert 1 - candidate.energy == pytest.approx(np.square(W - near).sum() / np.square(W).sum(), abs=1e-9)


def test_a_calibrated_curve_goes_through_the_real_fit() -> None:
    curve, tried, matrix = calibrated(candidates("kronecker", W, C), W.size // 2, W, C)
    assert tried.stored <= W.size // 2
    assert tried.error == pytest.approx(output_error(W, matrix, C), abs=1e-12)
    assert at_size(curve, tried.stored).error == pytest.approx(tried.error)


def test_shapes_divide() -> None:
    found = list(shapes(6, 4))
    assert (2, 2) in found
    assert (1, 1) not in found
    assert (6, 4) not in found
    assert len(found) == len(set(found)) == 4 * 3 - 2


# ------------------------------------------------------------------------------------ narrow


def test_narrow_candidates_tell_the_error_of_the_best_refit() -> None:
    found = narrow_candidates(W, C, each=40)
    assert [c.setting.hidden for c in found] == list(range(16, 0, -1))
    assert found[0].error == pytest.approx(0.0, abs=1e-5)
    for candidate in found[::5]:
        kept = units_to_keep(W, C, candidate.setting.hidden)
        refit = np.linalg.solve(C[np.ix_(kept, kept)], (W @ C)[:, kept].T).T
        whole = np.zeros_like(W)
        whole[:, kept] = refit
        assert candidate.error == pytest.approx(output_error(W, whole, C), rel=1e-3, abs=1e-5)
        assert candidate.stored == 40 * candidate.setting.hidden
    even = units_to_keep(W, None, 8)
    assert even.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    whole = np.zeros_like(W)
    whole[:, even] = W[:, even]
    assert found[8].error < output_error(W, whole, C)

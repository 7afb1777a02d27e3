"""Factors from weights and activations: exact where they can be, never worse by a sweep, and the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.compress.als import activation_aware, separable_start
from bonsaigpt.compress.exact import (
    even_rows,
    monarch_projection,
    output_error,
    pruned_kronecker,
    root,
    truncated_svd,
    van_loan,
    whitened_svd,
)
from bonsaigpt.compress.fit import fit, fit_rows, strongest_columns
from bonsaigpt.compress.moments import Moments
from bonsaigpt.config import MonarchStructure
from bonsaigpt.structure import Dense, Kronecker, KroneckerColumns, LowRank, Monarch, make
from bonsaigpt.structure.kronecker import rearrange, restore

random = np.random.default_rng(0)
SHAPES = [((24, 16), (6, 2)), ((24, 16), (3, 8)), ((16, 24), (2, 6)), ((24, 16), (24, 2)), ((24, 16), (1, 1))]


def expand(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    out, into = A.shape[1] * B.shape[1], A.shape[2] * B.shape[2]
    return Kronecker(out, into, (A.shape[1], A.shape[2]), len(A), False).expand({"A": A, "B": B})


def moments_of(n: int, *, spread: float = 1.0) -> np.ndarray:
    """Second moments of uneven, correlated inputs."""
    X = random.standard_normal((400, n)) @ random.standard_normal((n, n)) * np.exp(spread * random.standard_normal(n))
    return X.T @ X / len(X)


@pytest.mark.parametrize(("shape", "a_shape"), SHAPES)
def test_van_loan_is_exact_and_optimal(shape: tuple[int, int], a_shape: tuple[int, int]) -> None:
    W = random.standard_normal(shape)
    full = min(rearrange(W, a_shape).shape)
    assert np.allclose(expand(*van_loan(W, a_shape, full)), W, atol=1e-12)
    sigma = np.linalg.svd(rearrange(W, a_shape), compute_uv=False)
    for terms in range(1, full + 1):
        left = np.square(W - expand(*van_loan(W, a_shape, terms))).sum()
        assert left == pytest.approx(np.square(sigma[terms:]).sum(), abs=1e-9 * np.square(sigma).sum())
    assert np.array_equal(restore(rearrange(W, a_shape), a_shape, *shape), W)


def test_van_loan_keeps_small_singular_values() -> None:
    """A Gram matrix squares them, but the weight is projected: full R gives back 1e-9 beside 1."""
    A, B = random.standard_normal((2, 4, 4)), random.standard_normal((2, 3, 3))
    W = expand(A, B * np.array([1.0, 1e-9])[:, None, None])
    found = expand(*van_loan(W, (4, 4), 9))
    assert np.abs(found - W).max() < 1e-14 * np.abs(W).max() * 100
    assert np.isfinite(found).all()
    factors = van_loan(W, (4, 4), 9)
    assert all(np.any(a) or np.any(b) for a, b in zip(*factors, strict=True))  # no term is stuck at zero


def test_a_transposed_weight_has_transposed_factors_and_no_others() -> None:
    W = random.standard_normal((24, 16))
    A, B = van_loan(W.T, (2, 6), 3)
    assert np.allclose(expand(A, B).T, expand(*van_loan(W, (6, 2), 3)), atol=1e-10)
    wrong = np.ascontiguousarray(W.T).reshape(24, 16)  # as many numbers, silently another matrix
    assert not np.allclose(expand(*van_loan(wrong, (6, 2), 3)), expand(A, B).T, atol=1e-3)


def test_svd_and_whitened_svd() -> None:
    W, C = random.standard_normal((24, 16)), moments_of(16)
    plain, white = truncated_svd(W, 5), whitened_svd(W, C, 5)
    assert output_error(W, white[0] @ white[1], C) < 0.9 * output_error(W, plain[0] @ plain[1], C)
    assert np.square(W - plain[0] @ plain[1]).sum() < np.square(W - white[0] @ white[1]).sum()
    half, inverse = root(C)
    sigma = np.linalg.svd(W @ half, compute_uv=False)
    best = np.square(sigma[5:]).sum() / np.square(sigma).sum()
    assert output_error(W, white[0] @ white[1], C) == pytest.approx(best, rel=1e-6)
    assert np.allclose(half @ inverse, np.eye(16), atol=1e-6)


def test_monarch_projection_is_an_svd_of_each_slice() -> None:
    W = random.standard_normal((24, 16))
    for rank in (1, 4):
        L, R = monarch_projection(W, (6, 4), rank)
        found = make(MonarchStructure(a_shape=(6, 4), rank=rank), 24, 16).expand({"L": L, "R": R})
        slices = W.reshape(6, 4, 4, 4).transpose(1, 2, 0, 3)
        left = np.square(np.linalg.svd(slices, compute_uv=False)[..., rank:]).sum()
        assert np.square(W - found).sum() == pytest.approx(left, abs=1e-9)


def test_pruning_keeps_even_rows() -> None:
    W = random.standard_normal((24, 16))
    A, B = pruned_kronecker(W, (6, 16))
    assert np.array_equal(expand(A, B)[::4], W[::4])
    assert np.allclose(expand(A, B)[1::4], 1e-4 * W[::4])
    assert list(even_rows(10, 4)) == [0, 2, 5, 7]
    with pytest.raises(ValueError, match="row or a column"):
        pruned_kronecker(W, (6, 4))


@pytest.mark.parametrize(("shape", "a_shape"), SHAPES[:4])
def test_activation_aware_falls_from_sweep_to_sweep_and_beats_what_is_blind(
    shape: tuple[int, int], a_shape: tuple[int, int]
) -> None:
    W, C = random.standard_normal(shape), moments_of(shape[1])
    fit = activation_aware(W, C, a_shape, 4, sweeps=30, tolerance=0.0)
    assert all(later <= before * (1 + 1e-9) + 1e-12 for before, later in zip(fit.errors, fit.errors[1:], strict=False))
    found = output_error(W, expand(fit.A, fit.B), C)
    assert found == pytest.approx(fit.errors[-1], abs=1e-4)
    assert found < output_error(W, expand(*van_loan(W, a_shape, 4)), C)
    again = activation_aware(W, C, a_shape, 4, sweeps=30, tolerance=0.0)
    assert np.array_equal(fit.A, again.A)
    assert np.array_equal(fit.B, again.B)


def test_each_half_step_is_the_least_squares_solution() -> None:
    """At the end of a long fit the gradient of the error is nil: no neighbour is better."""
    W, C = random.standard_normal((24, 16)), moments_of(16)
    fit = activation_aware(W, C, (6, 4), 3, sweeps=3000, tolerance=0.0)
    error = output_error(W, expand(fit.A, fit.B), C)
    for _ in range(20):
        A, B = (f + 1e-3 * np.abs(f).mean() * random.standard_normal(f.shape) for f in (fit.A, fit.B))
        assert output_error(W, expand(A, B), C) > error - 1e-9


def test_separable_moments_are_solved_at_once() -> None:
    W, C1, C2 = random.standard_normal((24, 16)), moments_of(4), moments_of(4, spread=0.3)
    C = np.kron(C1, C2)
    A, B = separable_start(W, C, (6, 4), 3)
    white = W @ np.kron(root(C1)[0], root(C2)[0])
    sigma = np.linalg.svd(rearrange(white, (6, 4)), compute_uv=False)
    best = np.square(sigma[3:]).sum() / np.square(sigma).sum()
    assert output_error(W, expand(A, B), C) == pytest.approx(best, rel=1e-3)
    fit = activation_aware(W, C, (6, 4), 3)
    assert fit.errors[-1] == pytest.approx(best, rel=1e-2)
    assert output_error(W, expand(*separable_start(W, np.eye(16), (6, 4), 3)), C) > 1.1 * best  # it is C that helps


def test_full_terms_lose_nothing_even_where_inputs_are_degenerate() -> None:
    W, C = random.standard_normal((12, 8)), moments_of(8)
    C[:, 3] = C[3, :] = 0.0  # an input that never was
    fit = activation_aware(W, C, (3, 4), 8)
    assert fit.errors[-1] < 1e-8
    assert np.isfinite(fit.A).all()


def test_moments_give_the_least_squares_map_and_its_error() -> None:
    W = random.standard_normal((5, 8))
    X = random.standard_normal((300, 8)) @ random.standard_normal((8, 8))
    T = X @ W.T + random.standard_normal((300, 5)) + 0.5 * X[:, :5] ** 2
    moments = Moments(X.T @ X / 300, T.T @ X / 300, float(np.square(T).sum() / 300), 300)
    best = moments.best(W, ridge=0.0)
    assert np.allclose(best, np.linalg.lstsq(X, T, rcond=None)[0].T)
    assert moments.error(best) == pytest.approx(np.square(T - X @ best.T).sum() / np.square(T).sum())
    assert moments.error(best) < moments.error(W)
    own = Moments(moments.C, W @ moments.C, float(np.vdot(W @ moments.C, W)), 300)
    assert np.allclose(own.best(W), W)


FITTED = {
    "kronecker": Kronecker(24, 16, (6, 2), 5, True),
    "kronecker+sparse": KroneckerColumns(24, 16, (6, 2), 4, False, (3, 9)),
    "lowrank": LowRank(24, 16, 6),
    "monarch": Monarch(24, 16, (6, 4), 2),
    "dense": Dense(24, 16),
}


@pytest.mark.parametrize("name", FITTED)
def test_every_structure_is_fitted_blind_or_to_its_inputs(name: str) -> None:
    structure, W, C = FITTED[name], random.standard_normal((24, 16)), moments_of(16)
    errors: list[float] = []
    for known in (None, C):
        factors = fit(structure, W, known)
        assert {n: a.shape for n, a in factors.items()} == {f.name: f.shape for f in structure.factors}
        errors.append(output_error(W, structure.expand(factors), C))
    assert errors[1] < 0.9 * errors[0] or name in ("monarch", "dense")
    assert errors[0] < 1.0


def test_columns_are_the_best_for_the_products() -> None:
    """And sparing the strongest inputs from the products beats as many terms more where inputs are uneven."""
    W, C = random.standard_normal((24, 16)), moments_of(16, spread=2.0)
    columns = strongest_columns(W, C, 2)
    structure = KroneckerColumns(24, 16, (6, 2), 4, False, columns)
    factors = fit(structure, W, C)
    error = output_error(W, structure.expand(factors), C)
    for _ in range(10):
        moved = factors | {"C": factors["C"] + 0.01 * random.standard_normal(factors["C"].shape)}
        assert output_error(W, structure.expand(moved), C) > error
    weakest = tuple(np.argsort(np.diag(C))[:2].tolist())
    other = KroneckerColumns(24, 16, (6, 2), 4, False, weakest)
    assert error < output_error(W, other.expand(fit(other, W, C)), C)


@pytest.mark.parametrize(
    "structure", [Kronecker(24, 16, (6, 4), 3, False), LowRank(24, 16, 4)], ids=["sums", "low rank"]
)
def test_rows_that_are_looked_up_often_are_kept_better(structure: Kronecker | LowRank) -> None:
    """The mean error of a look-up falls; for low rank to the optimum, the truncated SVD of rows scaled by the roots of
    their shares. Alike shares give what is blind to them."""
    W, shares = random.standard_normal((24, 16)), 1.0 / np.arange(1, 25)

    def error(factors: dict[str, np.ndarray]) -> float:
        return float(shares @ np.square(W - structure.expand(factors)).sum(axis=1))

    found, blind = fit_rows(structure, W, shares / shares.sum()), fit(structure, W)
    assert {name: value.shape for name, value in found.items()} == {f.name: f.shape for f in structure.factors}
    assert error(found) < 0.9 * error(blind)
    if isinstance(structure, LowRank):
        sigma = np.linalg.svd(np.sqrt(shares)[:, None] * W, compute_uv=False)
        assert error(found) == pytest.approx(np.square(sigma[structure.rank :]).sum(), rel=1e-4)
    even = structure.expand(fit_rows(structure, W, np.full(24, 1 / 24)))
    assert error(blind) == pytest.approx(float(shares @ np.square(W - even).sum(axis=1)), rel=0.02)

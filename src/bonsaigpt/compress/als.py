"""Activation-aware Kronecker factors: the sum of products whose output is nearest to the weight's on real inputs.

With C = E[x x^T], minimise E||W x - sum_r (A_r (x) B_r) x||^2 = ||(W - sum_r A_r (x) B_r) C^(1/2)||^2. If C is itself a
Kronecker product C1 (x) C2 this is Van Loan's problem for W (C1^(1/2) (x) C2^(1/2)). It never is quite, but the nearest
such product is a good start. From there, the error is quadratic in A for a given B and in B for a given A, with one
set of normal equations for all rows: alternating least squares, whose every half step lowers the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bonsaigpt.compress.exact import root, van_loan

__all__ = ["KroneckerFit", "activation_aware", "separable_roots", "separable_start", "whitened"]

_RIDGE = 1e-6
"""Of the mean second moment, added to all inputs: what never happened in calibration must not cost nothing."""
_NEAR = 1e-9
"""Pull towards the factors of the sweep before, over the mean curvature: a step stays defined where nothing determines
it, and can never raise the error."""

Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class KroneckerFit:
    """Factors, and how the fit went."""

    A: np.ndarray
    """(R, m1, n1)."""
    B: np.ndarray
    """(R, m2, n2)."""
    errors: tuple[float, ...]
    """Relative error of the output (E||W x - ...||^2 / E||W x||^2, the ridge included) at the start and after each
    sweep; it never rises."""


def activation_aware(
    W: np.ndarray,
    C: np.ndarray,
    a_shape: tuple[int, int],
    terms: int,
    *,
    sweeps: int = 10,
    tolerance: float = 1e-3,
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> KroneckerFit:
    """Fit ``terms`` products to a weight (m, n) whose inputs have second moments ``C`` (n, n).

    Args:
        sweeps: of A and then B, at most.
        tolerance: stop when a sweep lowers the error by less than this share of it.
        start: A and B to begin with, instead of the separable start.
    """
    W, C = W.astype(np.float64), C.astype(np.float64)
    (m, n), (m1, n1) = W.shape, a_shape
    m2, n2 = m // m1, n // n1
    C = C / (np.trace(C) / n)
    C[np.diag_indices(n)] += _RIDGE
    A, B = separable_start(W, C, a_shape, terms) if start is None else start
    WC = W @ C
    whole = float(np.vdot(WC, W))
    targets = WC.reshape(m1, m2, n1, n2)
    # Rows are pairs of input indices of A, columns those of B.
    C_pairs = C.reshape(n1, n2, n1, n2).transpose(0, 2, 1, 3).reshape(n1 * n1, n2 * n2)
    # The same for a solver of A, whose partner is B, and the other way round.
    targets_of_B = np.ascontiguousarray(targets.transpose(1, 0, 3, 2))
    C_of_B = np.ascontiguousarray(C_pairs.T)
    errors: list[float] = [_error(A, B, targets, C_pairs, whole)]
    for _ in range(sweeps):
        A, B = _solve(A, B, targets, C_pairs)
        B, A = _solve(B, A, targets_of_B, C_of_B)
        A, B = _balanced(A, B)
        errors.append(_error(A, B, targets, C_pairs, whole))
        if errors[-2] - errors[-1] < tolerance * errors[-1]:
            break
    return KroneckerFit(A, B, tuple(errors))


def separable_start(
    W: np.ndarray, C: np.ndarray, a_shape: tuple[int, int], terms: int
) -> tuple[np.ndarray, np.ndarray]:
    """The solution in closed form for the Kronecker product C1 (x) C2 that is nearest to C: exact if C is one."""
    (half1, inverse1), (half2, inverse2) = separable_roots(C, a_shape[1])
    A, B = van_loan(whitened(W, half1, half2), a_shape, terms)
    return A @ inverse1, B @ inverse2


def separable_roots(C: np.ndarray, n1: int) -> tuple[Factors, Factors]:
    """Of C1 (n1, n1) and of C2, whose Kronecker product is nearest to C, the root and its inverse each."""
    [C1], [C2] = van_loan(C, (n1, n1), 1)
    sign = 1.0 if np.trace(C1) > 0 else -1.0  # the nearest product of a positive matrix is positive, up to both signs
    return root(sign * C1, ridge=1e-6), root(sign * C2, ridge=1e-6)


def whitened(W: np.ndarray, half1: np.ndarray, half2: np.ndarray) -> np.ndarray:
    """W (half1 (x) half2)."""
    table = W.reshape(len(W), len(half1), len(half2))
    return np.einsum("ajk,jp,kq->apq", table, half1, half2, optimize=True).reshape(W.shape)


def _solve(X: np.ndarray, Y: np.ndarray, targets: np.ndarray, C_pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best first factor X (R, p, k) for a given second Y (R, q, l); ``targets`` is W C as (p, q, k, l)."""
    R, p, k = X.shape
    _, q, l = Y.shape  # noqa: E741  # the index of the equations
    flat = Y.transpose(1, 0, 2).reshape(q, R * l)
    gram = (flat.T @ flat).reshape(R, l, R, l).transpose(0, 2, 1, 3).reshape(R * R, l * l)
    normal = (gram @ C_pairs.T).reshape(R, R, k, k).transpose(0, 2, 1, 3).reshape(R * k, R * k)
    right = np.tensordot(Y, targets, axes=((1, 2), (1, 3))).transpose(0, 2, 1).reshape(R * k, p)
    near = _NEAR * np.trace(normal) / len(normal)
    normal[np.diag_indices(R * k)] += near
    right += near * X.transpose(0, 2, 1).reshape(R * k, p)
    return np.linalg.solve(normal, right).reshape(R, k, p).transpose(0, 2, 1), Y


def _error(A: np.ndarray, B: np.ndarray, targets: np.ndarray, C_pairs: np.ndarray, whole: float) -> float:
    """||(W - W')C^(1/2)||^2 / ||W C^(1/2)||^2."""
    R, n1, n2 = len(A), A.shape[2], B.shape[2]
    inner = np.einsum("rik,sil->rskl", A, A, optimize=True).reshape(R * R, n1 * n1) @ C_pairs
    outer = np.einsum("rik,sil->rskl", B, B, optimize=True).reshape(R * R, n2 * n2)
    own = float(np.vdot(inner, outer))
    both = float(np.vdot(np.tensordot(B, targets, axes=((1, 2), (1, 3))), A))
    return (whole - 2 * both + own) / whole


def _balanced(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same products with both factors of each term of one norm."""
    norms = np.linalg.norm(A, axis=(1, 2), keepdims=True), np.linalg.norm(B, axis=(1, 2), keepdims=True)
    scale = np.sqrt(np.maximum(norms[1], 1e-30) / np.maximum(norms[0], 1e-30))
    return A * scale, B / scale

"""Factors in closed form: exact for the weight alone, or for its output on inputs with given second moments.

All in float64 and deterministic. Names: W is (m, n) = (out, in); C is E[x x^T] of the inputs, (n, n).
"""

from __future__ import annotations

import numpy as np

from bonsaigpt.structure.kronecker import rearrange

__all__ = [
    "even_rows",
    "monarch_projection",
    "output_error",
    "pruned_kronecker",
    "root",
    "truncated_svd",
    "van_loan",
    "whitened_svd",
]

Pair = tuple[np.ndarray, np.ndarray]


def van_loan(W: np.ndarray, a_shape: tuple[int, int], terms: int) -> Pair:
    """A (R, m1, n1) and B (R, m2, n2) whose sum of Kronecker products is nearest to W (Van Loan and Pitsianis 1993).

    The best approximation of the rearranged W, found from the eigenvectors of the smaller of its two Gram matrices:
    exact and deterministic, where a randomised SVD is neither. The rearranged W is projected onto them, so that at full
    R nothing is lost, however small the singular values. Terms are in falling order of energy, factors balanced.
    """
    (m, n), (m1, n1) = W.shape, a_shape
    rows = rearrange(W.astype(np.float64), a_shape)
    upright = rows.shape[0] >= rows.shape[1]
    tall = rows if upright else rows.T
    _, vectors = np.linalg.eigh(tall.T @ tall)
    right = vectors[:, ::-1][:, :terms]
    right = right * np.where(right[np.abs(right).argmax(axis=0), range(right.shape[1])] < 0, -1.0, 1.0)
    left = tall @ right
    sigma = np.linalg.norm(left, axis=0)
    # A term of no energy keeps one factor: were both zero, no gradient would ever reach it.
    scale = np.sqrt(np.maximum(sigma, 1e-12 * sigma.max(initial=1e-300)))
    left, right = left / scale, right * scale
    U, V = (left, right) if upright else (right, left)
    return U.T.reshape(-1, m1, n1), V.T.reshape(-1, m // m1, n // n1)


def truncated_svd(W: np.ndarray, rank: int) -> Pair:
    """U (m, rank) and V (rank, n) with U V nearest to W (Eckart and Young 1936), balanced."""
    U, sigma, V = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    scale = np.sqrt(sigma[:rank])
    return U[:, :rank] * scale, scale[:, None] * V[:rank]


def whitened_svd(W: np.ndarray, C: np.ndarray, rank: int) -> Pair:
    """U and V whose output U V x is nearest to W x on inputs of second moments C (Wang et al. 2024, SVD-LLM): the best
    approximation of W C^(1/2), times C^(-1/2)."""
    half, inverse = root(C)
    U, V = truncated_svd(W @ half, rank)
    return U, V @ inverse


def monarch_projection(W: np.ndarray, a_shape: tuple[int, int], rank: int) -> Pair:
    """L (m2, m1, n1 r) and R (n1, m2 r, n2) nearest to W: an SVD of its own for each slice (Dao et al. 2022)."""
    (m, n), (m1, n1) = W.shape, a_shape
    m2, n2 = m // m1, n // n1
    slices = W.astype(np.float64).reshape(m1, m2, n1, n2).transpose(1, 2, 0, 3)
    U, sigma, V = np.linalg.svd(slices, full_matrices=False)
    scale = np.sqrt(sigma[:, :, :rank])
    L = (U[..., :rank] * scale[:, :, None]).transpose(0, 2, 1, 3).reshape(m2, m1, n1 * rank)
    R = (V[:, :, :rank] * scale[..., None]).transpose(1, 0, 2, 3).reshape(n1, m2 * rank, n2)
    return L, R


def even_rows(rows: int, kept: int) -> np.ndarray:
    """Numbers of ``kept`` rows, evenly spread over ``rows``."""
    return np.arange(kept) * rows // kept


def pruned_kronecker(W: np.ndarray, a_shape: tuple[int, int]) -> Pair:
    """One term that repeats evenly spread rows or columns: A holds the rows (or columns) of W that are kept, B is one,
    then small numbers. For a B that is a column (k, 1) or a row (1, k), as in Krony-PT; its zeros would let no gradient
    through, so they are 1e-4 (its author's note)."""
    (m, n), (m1, n1) = W.shape, a_shape
    m2, n2 = m // m1, n // n1
    if 1 not in (m2, n2):
        raise ValueError(f"pruning fits a B that is a row or a column, not {m2} x {n2}")
    B = np.full((1, m2, n2), 1e-4)
    B[0, 0, 0] = 1.0
    return W.astype(np.float64)[::m2, ::n2][None].copy(), B


def output_error(W: np.ndarray, other: np.ndarray, C: np.ndarray) -> float:
    """E||W x - other x||^2 / E||W x||^2 over inputs of second moments C."""
    E = W - other
    return float(np.vdot(E @ C, E) / np.vdot(W @ C, W))


def root(C: np.ndarray, *, ridge: float = 1e-9) -> Pair:
    """C^(1/2) and C^(-1/2) of a symmetric matrix; directions below ``ridge`` of the largest count as that large."""
    values, vectors = np.linalg.eigh((C + C.T) / 2)
    halves = np.sqrt(np.maximum(values, ridge * values[-1]))
    return (vectors * halves) @ vectors.T, (vectors / halves) @ vectors.T

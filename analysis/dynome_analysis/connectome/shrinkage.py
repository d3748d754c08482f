"""Partial correlation of many units over few samples: a shrunk correlation matrix, inverted. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dtrtri

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SHRINKAGE_MINIMUM", "partial_columns", "shrinkage_intensity"]

# The inverse exists for any positive intensity. The estimate is 0 only where samples are too few to tell, as with two
# samples, whose correlations are all 1 or -1. [O]
SHRINKAGE_MINIMUM = 1e-6


def shrinkage_intensity(columns: NDArray[np.float64], gram: NDArray[np.float64] | None = None) -> float:
    """Estimate how much of the identity to mix into a correlation matrix, so that the error is least on average.

    ``lambda = (m q - F) / (m (F - p))``, clipped to [SHRINKAGE_MINIMUM, 1], with ``R = Z^T Z``, ``F = |R|^2`` and
    ``q = sum_k (sum_i z_ki^2)^2`` over m samples and p units: Ledoit and Wolf, *A well-conditioned estimator for
    large-dimensional covariance matrices*, J. Multivariate Analysis 88 (2004), section 3.3, for columns of variance 1.

    Parameters
    ----------
    columns : float64, shape (sample, unit)
        Z: mean 0, norm 1.
    gram : float64, shape (side, side), optional
        ``Z Z^T`` or ``Z^T Z`` (both have the same F), lower triangle.

    Returns
    -------
    float
        In [SHRINKAGE_MINIMUM, 1].

    Notes
    -----
    O(sample * unit * min(sample, unit)) time; 8 * min(sample, unit)^2 bytes.
    """
    samples, units = columns.shape
    lower = _gram(columns) if gram is None else gram
    diagonal = np.diagonal(lower)
    size = 2 * sum(float(row[: i + 1] @ row[: i + 1]) for i, row in enumerate(lower)) - float(diagonal @ diagonal)
    powers = np.einsum("ki,ki->k", columns, columns)
    spread = samples * float(powers @ powers) - size
    distance = samples * (size - units)
    if distance <= 0:  # no correlation at all: nothing to shrink
        return SHRINKAGE_MINIMUM
    return float(np.clip(spread / distance, SHRINKAGE_MINIMUM, 1.0))


def partial_columns(columns: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
    """Return columns whose inner products, times the sign, are shrunk partial correlations (off the diagonal).

    ``R* = (1 - lambda) Z^T Z + lambda I`` and ``P = R*^-1`` give ``rho_ij = -P_ij / sqrt(P_ii P_jj)``. No (unit, unit)
    inverse is made. With fewer samples than units, ``P = (I - W^T W) / lambda`` where ``L W = Z`` and
    ``L L^T = Z Z^T + lambda / (1 - lambda) I`` (Woodbury), hence ``rho_ij = w_i . w_j / sqrt((1 - |w_i|^2) (1 -
    |w_j|^2))``. With fewer units, ``P = (L^-1)^T L^-1`` where ``L L^T = R*``: minus the cosine of two columns.

    Parameters
    ----------
    columns : float64, shape (sample, unit)
        Z: mean 0, norm 1; no unit is dead.

    Returns
    -------
    values : float32, shape (min(sample, unit), unit)
    sign : float
        1 or -1.

    Notes
    -----
    O(sample * unit * min(sample, unit)) time in float64. Memory: one float64 copy of the columns and 16 bytes per
    entry of the smaller Gram matrix.
    """
    samples, units = columns.shape
    if units == 0:
        return np.zeros((1, 0), np.float32), 1.0
    gram = _gram(columns)
    intensity = shrinkage_intensity(columns, gram)
    if intensity == 1.0:
        return np.zeros((1, units), np.float32), 1.0
    if samples < units:
        np.fill_diagonal(gram, gram.diagonal() + intensity / (1 - intensity))
        factor = cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
        solved = solve_triangular(factor, columns, lower=True, check_finite=False)
        rest = 1 - np.einsum("ki,ki->i", solved, solved)
        solved /= np.sqrt(rest)
        return np.ascontiguousarray(solved, np.float32), 1.0
    gram *= 1 - intensity
    np.fill_diagonal(gram, gram.diagonal() + intensity)
    inverse, _ = dtrtri(cholesky(gram, lower=True, overwrite_a=True, check_finite=False), lower=1, overwrite_c=1)
    inverse /= np.sqrt(np.einsum("ki,ki->i", inverse, inverse))
    return np.ascontiguousarray(inverse, np.float32), -1.0


def _gram(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smaller of ``Z Z^T`` and ``Z^T Z``; lower triangle, zeros above."""
    samples, units = columns.shape
    # Rows that are contiguous are columns to Fortran, which needs no copy of them.
    product = dsyrk(1.0, np.ascontiguousarray(columns).T, trans=int(samples < units), lower=0)
    lower: NDArray[np.float64] = product.T
    return lower

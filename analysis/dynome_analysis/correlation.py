"""Functional connectome of one snapshot: |Pearson correlation| between units over samples. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.kernels.standardise import column_magnitudes, standardise_columns
from dynome_analysis.kernels.symmetry import TILE, finish_absolute_correlation
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEAD_TOLERANCE", "correlate", "non_finite_units", "standardise"]

# Eight roundings of float32. A unit that varies less than this, relative to its size, varies by rounding only, and the
# correlation of two rounding errors is noise with |r| up to 1. [O]
DEAD_TOLERANCE = 1e-6


def correlate(
    activations: NDArray[np.floating[Any]], *, dead_tolerance: float = DEAD_TOLERANCE
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Correlate every pair of units over the samples and keep the absolute value.

    ``C_ij = |rho_ij|``, ``C_ii = 0``, with ``rho`` the Pearson correlation (METHODS.md section 1; TOP and CG-ALR [P]).
    A unit that does not vary has no correlation: it stays a vertex, all its edges are 0, and it is marked dead [O].

    Parameters
    ----------
    activations : floating, shape (sample, unit)
        Finite; never modified. float16 is read as float32; other floating types as they are.
    dead_tolerance : float
        A unit is dead when its standard deviation is at most this fraction of its root mean square [O].

    Returns
    -------
    connectome : float32, shape (unit, unit)
        New array, in [0, 1], exactly symmetric, diagonal 0.
    dead : bool, shape (unit,)
        Units without variance. With a single sample every unit is dead.

    Raises
    ------
    InvalidArgumentError
        ``activations`` is not a two-dimensional floating array with at least one sample and one unit.
    InvalidDataError
        A value is NaN or infinite; ``non_finite_units`` tells which units hold one.

    Notes
    -----
    O(sample * unit^2) time in one float32 matrix product; sums before it are float64 in two passes. Memory: the result
    and one float32 copy of the activations.
    """
    standardised, dead = standardise(activations, dead_tolerance=dead_tolerance)
    # x.T @ x is one symmetric product (syrk) in numpy: half the work of a general one.
    connectome = standardised.T @ standardised
    finish_absolute_correlation(connectome, np.empty((TILE, TILE), np.float32))
    return connectome, dead


def standardise(
    activations: NDArray[np.floating[Any]], *, dead_tolerance: float = DEAD_TOLERANCE
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Bring every unit to mean 0 and Euclidean norm 1 over the samples, so that products of columns are correlations.

    Parameters
    ----------
    activations, dead_tolerance
        As for `correlate`.

    Returns
    -------
    columns : float32, shape (sample, unit)
        New array; columns of dead units are 0.
    dead : bool, shape (unit,)

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `correlate`.

    Notes
    -----
    O(sample * unit) time; sums are float64 in two passes.
    """
    matrix = _check_activations(activations)
    samples, units = matrix.shape
    magnitudes = _magnitudes(matrix)
    if not np.isfinite(magnitudes).all():
        bad = np.flatnonzero(~np.isfinite(magnitudes))
        raise InvalidDataError(
            f"activations of {bad.size} of {units} units hold NaN or infinity (first: unit {bad[0]}): "
            "a correlation needs finite values; leave the snapshot or the site out"
        )
    standardised = np.empty((samples, units), np.float32)
    dead = np.empty(units, np.bool_)
    # 2^1000 is far enough for the smallest subnormal columns.
    scale = np.ldexp(1.0, np.minimum(-np.frexp(magnitudes)[1], 1000))
    standardise_columns(matrix, scale, dead_tolerance, np.empty((2, units)), standardised, dead)
    return standardised, dead


def non_finite_units(activations: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return the indices of the units (columns of ``activations``, (sample, unit)) that hold a NaN or an infinity."""
    return np.flatnonzero(~np.isfinite(_magnitudes(_check_activations(activations))))


def _magnitudes(matrix: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    magnitudes = np.empty(matrix.shape[1])
    with np.errstate(invalid="ignore"):  # inf - inf is meant
        column_magnitudes(matrix, np.empty_like(magnitudes), magnitudes)
    return magnitudes


def _check_activations(activations: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return ``activations`` as a C-ordered float32 or float64 matrix, or say what it should have been."""
    matrix = np.asarray(activations)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind != "f":
        raise InvalidArgumentError(
            "activations must be a floating array of shape (sample, unit), neither axis empty; got "
            f"{matrix.dtype} of shape {matrix.shape}"
        )
    return np.ascontiguousarray(matrix, dtype=np.float32 if matrix.dtype.itemsize <= 4 else np.float64)

"""Functional connectome of one snapshot: how strongly every two units vary together over samples. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg.blas import ssyrk

from dynome_analysis.connectome.columns import (
    DEAD_TOLERANCE,
    MEASURES,
    Measure,
    UnitColumns,
    non_finite_units,
    standardise,
    unit_columns,
)
from dynome_analysis.kernels.symmetry import TILE, clip_rows, finish_correlation
from dynome_analysis.threads import for_each, usable_cores
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DEAD_TOLERANCE",
    "MEASURES",
    "Measure",
    "correlate",
    "cross_correlate",
    "non_finite_units",
    "standardise",
]

# Rows that a thread finishes at a time, and the least number of units for which a second thread pays.
STRIP = 256
THREADED = 2048


def correlate(
    activations: NDArray[np.floating[Any]],
    *,
    measure: Measure = "pearson",
    signed: bool = False,
    dead_tolerance: float = DEAD_TOLERANCE,
    threads: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compare every pair of units over the samples and keep the absolute value.

    ``C_ij = |rho_ij|``, ``C_ii = 0``, with ``rho`` the Pearson correlation (METHODS.md section 1; TOP and CG-ALR [P])
    or another measure [O]. A unit that does not vary has no correlation: it stays a vertex, all its edges are 0, and it
    is marked dead [O].

    Parameters
    ----------
    activations : floating, shape (sample, unit)
        Finite; never modified. float16 is read as float32; other floating types as they are.
    measure : {"pearson", "spearman", "cosine", "partial"}
        - "pearson": correlation.
        - "spearman": correlation of average ranks.
        - "cosine": of the activations as they are, not centred.
        - "partial": correlation of two units given all others, from a correlation matrix shrunk towards the identity
          by the intensity of Ledoit and Wolf (2004), so that there may be fewer samples than units [O].
    signed : bool
        Keep the sign: values in [-1, 1]. Graph homology and Rips persistence take absolute values only.
    dead_tolerance : float
        A unit is dead when its standard deviation is at most this fraction of its root mean square [O]. For "cosine"
        a unit is dead when it is 0 at every sample, and the tolerance is not used.
    threads : int, optional
        Threads of the passes around the matrix product; all usable cores by default. The product has the threads that
        BLAS has (OMP_NUM_THREADS, threadpoolctl).

    Returns
    -------
    connectome : float32, shape (unit, unit)
        New array, in [0, 1] ([-1, 1] if signed), exactly symmetric, diagonal 0.
    dead : bool, shape (unit,)
        With a single sample every unit is dead, but for "cosine".

    Raises
    ------
    InvalidArgumentError
        ``activations`` is not a two-dimensional floating array with at least one sample and one unit, the measure is
        unknown, or the tolerance is negative or NaN.
    InvalidDataError
        A value is NaN or infinite; ``non_finite_units`` tells which units hold one.

    Notes
    -----
    O(sample * unit^2) time in one float32 matrix product; sums before it are float64 in two passes. Memory: the result
    and one float32 copy of the activations. "spearman" also ranks the values, 9 ns each. "partial" takes O(sample *
    unit * min(sample, unit)) in float64 before the product (five to ten times as long as "pearson" in all), and two
    float64 copies of the activations.
    """
    threads = usable_cores() if threads is None else threads
    columns = unit_columns(activations, measure=measure, dead_tolerance=dead_tolerance, threads=threads)
    return _symmetric_product(columns, signed=signed, threads=threads), columns.dead


def cross_correlate(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    *,
    measure: Measure = "pearson",
    signed: bool = False,
    dead_tolerance: float = DEAD_TOLERANCE,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare every unit of one set with every unit of another, over the same samples.

    Parameters
    ----------
    first, second : floating, shape (sample, unit_a) and (sample, unit_b)
        As for `correlate`; the same samples in the same order.
    measure : {"pearson", "spearman", "cosine"}
        As for `correlate`. A partial correlation depends on all units and has no such block.
    signed, dead_tolerance
        As for `correlate`.

    Returns
    -------
    block : float32, shape (unit_a, unit_b)
        In [0, 1] ([-1, 1] if signed): the block of the joint connectome between the two sets.
    dead_first, dead_second : bool, shape (unit_a,) and (unit_b,)

    Raises
    ------
    InvalidArgumentError
        As `correlate`, the measure is "partial", or the numbers of samples differ.
    InvalidDataError
        A value is NaN or infinite.

    Notes
    -----
    O(sample * unit_a * unit_b) time. Memory: the result and a float32 copy of either input; no joint matrix.
    """
    if measure == "partial":
        raise InvalidArgumentError(
            "measure 'partial' depends on all units at once and has no block between two sets: use correlate on both "
            "side by side"
        )
    one = unit_columns(first, measure=measure, dead_tolerance=dead_tolerance)
    other = unit_columns(second, measure=measure, dead_tolerance=dead_tolerance)
    if one.values.shape[0] != other.values.shape[0]:
        raise InvalidArgumentError(
            f"first and second must hold the same samples; got {one.values.shape[0]} and {other.values.shape[0]}"
        )
    block = np.matmul(one.values.T, other.values)
    clip_rows(block, not signed)
    return block, one.dead, other.dead


def _symmetric_product(columns: UnitColumns, *, signed: bool, threads: int) -> NDArray[np.float32]:
    """Multiply the columns with each other and finish the correlations.

    One triangle is half the work. numpy's ``columns.T @ columns`` computes one triangle too, but then mirrors it entry
    by entry, which takes longer than the product at 1024 units; BLAS itself leaves the other triangle alone, and it is
    filled here tile by tile. A product tile by tile, finished while a tile is in the cache, was no faster: BLAS packs
    its input once for a large product and once per tile for many.
    """
    units = columns.values.shape[1]
    connectome = np.empty((units, units), np.float32)
    # Fortran's lower triangle is the upper one here; both transposes are views, and the result is written in place.
    product = ssyrk(columns.sign, columns.values.T, beta=0.0, c=connectome.T, lower=1, overwrite_c=1)
    connectome = product.T

    def finish(begin: int) -> None:
        end = min(begin + STRIP, units)
        finish_correlation(connectome, not signed, begin, end, np.empty((TILE, TILE), np.float32))

    for_each(finish, range(0, units, STRIP), threads=threads if units >= THREADED else 1)
    return connectome

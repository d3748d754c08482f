"""Activations as columns whose inner products are what a measure says of two units. Numbers only.

Every measure ends in the same matrix product, so that speed and exactness of the product have one home (correlation.py)
and a measure is only a way to prepare columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_analysis.connectome.shrinkage import partial_columns
from dynome_analysis.kernels.ranks import average_ranks
from dynome_analysis.kernels.standardise import COLUMNS, column_magnitudes, standardise_columns
from dynome_analysis.threads import for_each
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DEAD_TOLERANCE",
    "MEASURES",
    "Measure",
    "UnitColumns",
    "check_measure",
    "non_finite_units",
    "standardise",
    "unit_columns",
]

# Eight roundings of float32. A unit that varies less than this, relative to its size, varies by rounding only, and the
# correlation of two rounding errors is noise with |r| up to 1. [O]
DEAD_TOLERANCE = 1e-6

Measure = Literal["pearson", "spearman", "cosine", "partial"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True, eq=False)
class UnitColumns:
    """Columns, one per unit: ``sign * values.T @ values`` is the measure, off the diagonal.

    Attributes
    ----------
    values : float32, shape (sample, unit)
        Columns of dead units are 0. Partial correlation has at most as many rows as there are units.
    dead : bool, shape (unit,)
    sign : float
        1 or -1.
    """

    values: NDArray[np.float32]
    dead: NDArray[np.bool_]
    sign: float = 1.0


def unit_columns(
    activations: NDArray[np.floating[Any]],
    *,
    measure: Measure = "pearson",
    dead_tolerance: float = DEAD_TOLERANCE,
    threads: int = 1,
) -> UnitColumns:
    """Return the columns of a measure; arguments, dead units, errors and sources as for `correlate`.

    Notes
    -----
    O(sample * unit) time for "pearson" and "cosine", times the bytes of a value for "spearman"; "partial" as
    `partial_columns`. Memory: the result, and for "partial" two float64 copies of the activations.
    """
    check_measure(measure)
    _check_tolerance(dead_tolerance)
    matrix = _check_activations(activations)
    if measure == "spearman":
        return UnitColumns(*_rank_columns(matrix, dead_tolerance, threads))
    if measure == "partial":
        wide, dead = _standardise(matrix, np.float64, dead_tolerance)
        values, sign = partial_columns(wide[:, ~dead])
        if not dead.any():
            return UnitColumns(values, dead, sign)
        spread = np.zeros((values.shape[0], dead.size), np.float32)
        spread[:, ~dead] = values
        return UnitColumns(spread, dead, sign)
    if measure == "cosine":
        return UnitColumns(*_standardise(matrix, np.float32, 0.0, centre=False))
    return UnitColumns(*_standardise(matrix, np.float32, dead_tolerance))


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
    O(sample * unit) time; sums are float64 in two passes. Memory: the result.
    """
    _check_tolerance(dead_tolerance)
    return _standardise(_check_activations(activations), np.float32, dead_tolerance)


def non_finite_units(activations: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Return the indices of the units (columns of ``activations``, (sample, unit)) that hold a NaN or an infinity."""
    return np.flatnonzero(~np.isfinite(_magnitudes(_check_activations(activations))))


def check_measure(measure: str) -> None:
    """Raise `InvalidArgumentError` for an unknown measure."""
    if measure not in MEASURES:
        raise InvalidArgumentError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}")


def _check_tolerance(dead_tolerance: float) -> None:
    # NaN would make every unit dead, and so would a negative number, which only its square tells from its opposite.
    if not dead_tolerance >= 0:
        raise InvalidArgumentError(f"dead_tolerance must be a number of at least 0; got {dead_tolerance}")


def _standardise(
    matrix: NDArray[np.floating[Any]], dtype: Any, dead_tolerance: float, *, centre: bool = True
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    units = matrix.shape[1]
    columns = np.empty(matrix.shape, dtype)
    dead = np.empty(units, np.bool_)
    # Sums of squares of any float32 fit into float64; those of float64 need a scale.
    scale = np.ones(units)
    if matrix.dtype == np.float64:
        # 2^1000 is far enough for the smallest subnormal columns.
        scale = np.ldexp(1.0, np.minimum(-np.frexp(_magnitudes(matrix))[1], 1000))
    with np.errstate(invalid="ignore"):  # non-finite values are refused just below
        finite = standardise_columns(matrix, scale, centre, dead_tolerance, np.empty((2, COLUMNS)), columns, dead)
    if not finite:
        _refuse_non_finite(~np.isfinite(_magnitudes(matrix)))
    return columns, dead


def _rank_columns(
    matrix: NDArray[np.floating[Any]], dead_tolerance: float, threads: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Standardise average ranks; dead are the units that are dead as they stand: ranks blow rounding up."""
    samples, units = matrix.shape
    _refuse_non_finite(~np.isfinite(_magnitudes(matrix)))
    columns = np.empty(matrix.shape, np.float32)
    dead = np.empty(units, np.bool_)

    def rank(first: int) -> None:
        chosen = slice(first, first + COLUMNS)
        block = np.ascontiguousarray(matrix[:, chosen])
        dead[chosen] = _standardise(block, np.float32, dead_tolerance)[1]
        keys = _ordered_keys(block)
        ranks = np.empty(keys.shape, np.float32)
        average_ranks(
            keys,
            np.empty((keys.itemsize, 256), np.int64),
            np.empty(samples, keys.dtype),
            np.empty((2, samples), np.int32),
            ranks,
        )
        columns[:, chosen] = _standardise(np.ascontiguousarray(ranks.T), np.float32, 0.0)[0]

    for_each(rank, range(0, units, COLUMNS), threads=threads)
    columns[:, dead] = 0
    return columns, dead


def _ordered_keys(block: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    """Return (unit, sample) unsigned integers that order and tie as the finite floats of (sample, unit) do."""
    turned = np.ascontiguousarray(block.T) + block.dtype.type(0)  # -0.0 becomes 0.0, its equal
    signed = turned.view(np.int32 if turned.itemsize == 4 else np.int64)
    lowest = np.iinfo(signed.dtype).min
    # Positive floats order as their bits do; negative ones the other way round.
    signed ^= (signed >> (8 * signed.itemsize - 1)) | lowest
    keys: NDArray[np.unsignedinteger[Any]] = signed.view(np.uint32 if turned.itemsize == 4 else np.uint64)
    return keys


def _magnitudes(matrix: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    magnitudes = np.empty(matrix.shape[1])
    with np.errstate(invalid="ignore"):  # inf - inf is meant
        column_magnitudes(matrix, np.empty_like(magnitudes), magnitudes)
    return magnitudes


def _refuse_non_finite(bad: NDArray[np.bool_]) -> None:
    if bad.any():
        raise InvalidDataError(
            f"activations of {np.count_nonzero(bad)} of {bad.size} units hold NaN or infinity (first: unit "
            f"{bad.argmax()}): a correlation needs finite values; leave the snapshot or the site out"
        )


def _check_activations(activations: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return ``activations`` as a C-ordered float32 or float64 matrix, or say what it should have been."""
    if isinstance(activations, np.ma.MaskedArray):
        raise InvalidArgumentError(
            "activations must not be a masked array: a connectome has no rule for missing values; fill them, or leave "
            "those samples or units out"
        )
    matrix = np.asarray(activations)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind != "f":
        raise InvalidArgumentError(
            "activations must be a floating array of shape (sample, unit), neither axis empty; got "
            f"{matrix.dtype} of shape {matrix.shape}"
        )
    return np.ascontiguousarray(matrix, dtype=np.float32 if matrix.dtype.itemsize <= 4 else np.float64)

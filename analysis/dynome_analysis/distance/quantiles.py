"""Distances between the quantile functions of sorted values, for graphs of any sizes. Numbers only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.kernels.differences import merge_quantiles
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.floating[Any]]
    Measure: TypeAlias = Vector | WeightHistogram
    Atoms: TypeAlias = tuple[Vector, NDArray[np.int64], int]

__all__ = [
    "as_measure",
    "check_order",
    "flatten",
    "merged_powers",
    "quantile_distance",
    "quantile_embedding",
    "root_of_powers",
]

NO_COUNTS = np.empty(0, np.int64)


def quantile_distance(first: Sequence[Measure], second: Sequence[Measure], *, order: float = 2.0) -> float:
    """Return the Wasserstein distance between normalised empirical measures, of graphs of any sizes.

    With ``F^-1`` and ``G^-1`` the quantile functions of two vectors of N and M values, each of weight 1/N and 1/M,

        ( int_0^1 |F^-1(z) - G^-1(z)|^p dz )^(1/p),     the largest difference for p = inf

    and the p-th powers (for inf: the maximum) of several parts together. Exact: both functions are constant between the
    steps i/N and j/M, whose common refinement is walked once, with integer weights. For N = M it is
    ``sorted_distance / N^(1/p)`` for a single part. Births and deaths are each normalised on their own. [O: what to
    do with different sizes besides `quantile_embedding` [G]; this way nothing is resampled]

    Parameters
    ----------
    first, second : sequence of floating arrays (value,) or WeightHistogram
        As many on both sides; each ascends and holds at least one value. A histogram stands for its bin centres, so
        the result lies within ``(first.bound + second.bound)`` of that of the weights.
    order : float
        At least 1; may be infinite.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        An order below 1; a vector does not ascend or holds NaN.
    InvalidDataError
        A side is empty.

    Notes
    -----
    O(N + M) time, one pass for orders 1, 2 and inf, two for others; no memory beyond the inputs.
    """
    kind = check_order(order)
    pairs = [(as_measure(left), as_measure(right)) for left, right in zip(first, second, strict=True)]

    def powers(kind: int, scale: float) -> list[float]:
        return [merged_powers(left, right, kind, order, scale) for left, right in pairs]

    return root_of_powers(powers, kind, order)


def quantile_embedding(values: Measure, size: int) -> Vector:
    """Return ``size`` quantiles of a vector, so that graphs of different sizes become vectors of one length.

    ``v = (F^-1(1/m), ..., F^-1(m/m))`` with ``F^-1(z) = inf {x : F(x) >= z}``, by index
    ``sorted[ceil((i + 1) n / m) - 1]`` (arXiv 2511.09949 [G]; METHODS.md section 2), in integer arithmetic. Births and
    deaths are embedded separately.

    Parameters
    ----------
    values : floating, shape (value,), or WeightHistogram
        Ascending, at least one.
    size : int
        m, at least 1; with m = n the values come back.

    Returns
    -------
    floating, shape (size,)
        A copy, of the dtype of ``values`` (float32 for a histogram).

    Raises
    ------
    InvalidArgumentError
        A size below 1.
    InvalidDataError
        No values.

    Notes
    -----
    O(size) time and memory (a histogram: O(bins + size)).
    """
    if size < 1:
        raise InvalidArgumentError(f"size must be at least 1; got {size}")
    total = values.total if isinstance(values, WeightHistogram) else len(values)
    if total == 0:
        raise InvalidDataError("no values have no quantiles: a graph of one unit has no births")
    # (i + 1) n may exceed 64 bits: with n = q m + r it is i + 1 times q whole steps, and the rest.
    steps = np.arange(1, size + 1, dtype=np.int64)
    whole, rest = divmod(total, size)
    ranks = steps * whole + -(-(steps * rest) // size)
    if isinstance(values, WeightHistogram):
        embedded: Vector = values.centres[np.searchsorted(np.cumsum(values.counts), ranks)]
        return embedded
    chosen: Vector = np.asarray(values)[ranks - 1]
    return chosen


def root_of_powers(powers: Any, kind: int, order: float) -> float:
    """Return ``(sum of powers)^(1 / order)``; ``powers(kind, scale)`` computes them for every part."""
    if kind == 2:
        return math.sqrt(sum(powers(2, 1.0)))
    if kind == 1:
        return float(sum(powers(1, 1.0)))
    # numpy's maximum keeps NaN. Other orders are in units of the largest difference, so that no power vanishes.
    largest = float(np.max([0.0, *powers(0, 1.0)]))
    if kind == 0 or largest == 0:
        return largest
    return float(largest * sum(powers(3, largest)) ** (1 / order))


def check_order(order: float) -> int:
    """Return what the kernels call an order, or say which orders there are."""
    if not order >= 1:
        raise InvalidArgumentError(f"order must be at least 1 or infinite; got {order}")
    if math.isinf(order):
        return 0
    return int(order) if order in (1, 2) else 3


def flatten(array: Vector) -> Vector:
    """Return an array as one contiguous vector of a dtype that the kernels take, a view where possible."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float64)


def as_measure(values: Measure) -> Atoms:
    """Return atoms, how often each counts (empty: once), and the total."""
    if isinstance(values, WeightHistogram):
        atoms, counts, total = values.centres, values.counts, values.total
    else:
        atoms = flatten(values)
        counts, total = NO_COUNTS, atoms.size
    if total == 0:
        raise InvalidDataError("no values have no quantiles: a graph of one unit has no births")
    return atoms, counts, total


def merged_powers(
    first: Atoms,
    second: Atoms,
    kind: int,
    order: float,
    scale: float,
) -> float:
    """Return the integral over [0, 1] of powers of the difference of two quantile functions."""
    common = math.gcd(first[2], second[2])
    mass, other_mass = second[2] // common, first[2] // common
    if mass * first[2] >= 1 << 63:
        raise InvalidDataError(
            f"{first[2]} and {second[2]} values have too fine a common refinement: quantile_embedding makes one length"
        )
    pieces = merge_quantiles(first[0], first[1], mass, second[0], second[1], other_mass, kind, order, scale)
    if pieces < 0:
        raise InvalidArgumentError("values must ascend, without NaN: sort them first")
    return pieces if kind == 0 else pieces / (mass * first[2])

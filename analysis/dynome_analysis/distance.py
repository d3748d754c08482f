"""Distances between signatures whose weights are sorted: every Wasserstein distance in closed form. Numbers only.

Everything is computed from differences, with float64 sums, and never through a Gram matrix: consecutive snapshots lie
so close together that ``|x|^2 + |y|^2 - 2 x.y`` cancels. Distances between diagrams are a matching problem:
`dynome_analysis.matching`.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_analysis.histogram import WeightHistogram
from dynome_analysis.kernels.differences import LANES, merge_quantiles, pair_powers, sum_powers
from dynome_analysis.matching import diagram_distance
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.floating[Any]]
    Measure: TypeAlias = Vector | WeightHistogram

__all__ = ["diagram_distance", "pairwise_distances", "quantile_distance", "quantile_embedding", "sorted_distance"]

# Columns that are compared at a time: a block of 64 rows in float64 is 1 MB and stays in the second-level cache.
WIDTH = 16 * LANES
# Columns per task. Fixed, so that sums do not depend on the number of threads.
SEGMENT = 1 << 16
NO_COUNTS = np.empty(0, np.int64)


def sorted_distance(first: Sequence[Vector], second: Sequence[Vector], *, order: float = 2.0) -> float:
    """Return the distance between two tuples of vectors, the l-th entry against the l-th.

    With ``first = (births,)``, ``(deaths,)`` or ``(births, deaths)``, each ascending, this is the exact Wasserstein
    distance between the multisets, for ``order`` p

        ( sum_l |b_l - b'_l|^p + sum_l |d_l - d'_l|^p )^(1/p),     max_l |.| for p = inf (bottleneck)

    and ``d_top`` for p = 2 (*Fast topological clustering with Wasserstein distance*, ICLR 2022 [G]; METHODS.md
    section 2). With whole connectomes and p = 2 it is the Frobenius distance.

    Parameters
    ----------
    first, second : sequence of floating arrays
        As many arrays, of the same shapes, on both sides.
    order : float
        At least 1; may be infinite.

    Returns
    -------
    float
        NaN where an entry is NaN.

    Raises
    ------
    InvalidArgumentError
        An order below 1.
    InvalidDataError
        The shapes differ: the graphs have different numbers of units.

    Notes
    -----
    O(values) time, one pass for orders 1, 2 and inf, two for others; 2 kB beyond the inputs where they are contiguous
    float32 or float64.
    """
    kind = _check_order(order)
    parts = []
    for left, right in zip(first, second, strict=True):
        if left.shape != right.shape:
            raise InvalidDataError(
                f"graphs of different size have no distance entry by entry: shapes {left.shape} and {right.shape}; "
                "choose sites with as many units in both, or compare them by quantile_distance"
            )
        parts.append((_flat(left), _flat(right)))
    lanes, doubts = np.empty(LANES), np.empty(LANES)

    def powers(kind: int, scale: float) -> list[float]:
        return [sum_powers(left, right, kind, order, scale, lanes, doubts) for left, right in parts]

    return _root(powers, kind, order)


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
    kind = _check_order(order)
    pairs = [(_measure(left), _measure(right)) for left, right in zip(first, second, strict=True)]

    def powers(kind: int, scale: float) -> list[float]:
        return [_merge(left, right, kind, order, scale) for left, right in pairs]

    return _root(powers, kind, order)


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


def pairwise_distances(
    vectors: Sequence[Vector | Sequence[Measure]],
    others: Sequence[Vector | Sequence[Measure]] | None = None,
    *,
    order: float = 2.0,
    normalised: bool = False,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Return all distances between snapshots, or between those of two groups.

    Parameters
    ----------
    vectors : sequence of floating arrays (snapshot, value), or of sequences of rows (value,)
        As many snapshots in each, e.g. ``(births, deaths)``.
    others : the same, optional
        A second group; by default the first is compared with itself.
    order : float
        At least 1; may be infinite.
    normalised : bool
        False: `sorted_distance` for every pair; all rows of a part are equally long. True: `quantile_distance`; rows
        may differ in length and be histograms.
    threads : int, optional
        Cores to use; all that this process may use by default. The result does not depend on it.

    Returns
    -------
    float64, shape (snapshot, snapshot) or (snapshot, other snapshot)
        Without ``others`` symmetric with a diagonal of exactly 0. NaN where a row holds a NaN.

    Raises
    ------
    InvalidArgumentError
        An order below 1, or parts of different numbers of snapshots.
    InvalidDataError
        Rows of a part differ in length, and not ``normalised``.

    Notes
    -----
    O(snapshot^2 * value) time, from the cache: the inputs are read once (twice for orders besides 1, 2 and inf).
    Memory beyond the inputs and the result: per thread one block of 2,048 columns of all snapshots and one matrix like
    the result, whatever the number of values.
    """
    kind = _check_order(order)
    parts = [list(part) for part in vectors]
    against = None if others is None else [list(part) for part in others]
    rows, columns = _count(parts), _count(parts if against is None else against)
    if against is not None and len(against) != len(parts):
        raise InvalidArgumentError(f"both groups need the same parts; got {len(parts)} and {len(against)}")
    workers = threads or _usable_cores()
    found = np.zeros((rows, columns))
    if normalised:
        pairs = list(combinations(range(rows), 2) if against is None else product(range(rows), range(columns)))
        measured = [[_measure(row) for row in part] for part in parts]
        measured_against = measured if against is None else [[_measure(row) for row in part] for part in against]

        def measure(pair: tuple[int, int]) -> float:
            couples = [(part[pair[0]], other[pair[1]]) for part, other in zip(measured, measured_against)]

            def powers(kind: int, scale: float) -> list[float]:
                return [_merge(left, right, kind, order, scale) for left, right in couples]

            return _root(powers, kind, order)

        with ThreadPoolExecutor(workers) as pool:
            for pair, value in zip(pairs, pool.map(measure, pairs)):
                found[pair] = value
    else:
        flat = [[np.asarray(row).reshape(-1) for row in part] for part in parts]
        flat_against = None if against is None else [[np.asarray(row).reshape(-1) for row in part] for part in against]
        found = _all_pairs(flat, flat_against, kind, order, workers)
    return found + found.T if against is None else found


def _all_pairs(
    parts: list[list[Vector]], others: list[list[Vector]] | None, kind: int, order: float, workers: int
) -> NDArray[np.float64]:
    """Return the distances row by row, above the diagonal only where ``others`` is None."""
    segments = []
    for part, other in zip(parts, parts if others is None else others):
        lengths = {row.size for row in [*part, *other]}
        if len(lengths) > 1:
            raise InvalidDataError(
                f"graphs of different size have no distance entry by entry: rows of {min(lengths)} to {max(lengths)} "
                "values; choose sites with as many units in all, or normalised=True"
            )
        length = max(lengths, default=0)
        segments += [(part, None if others is None else other, start) for start in range(0, length, SEGMENT)]
    shape = (len(parts[0]), len((parts if others is None else others)[0]))

    def total(kind: int, scales: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.zeros(shape)
        work = partial(_segment, kind=kind, order=order, scales=scales, shape=shape)
        if workers == 1 or len(segments) == 1:
            for segment in segments:
                _combine(out, work(segment), kind)
            return out
        with ThreadPoolExecutor(workers) as pool:
            # As many at a time as there are workers: finished matrices must not pile up.
            for start in range(0, len(segments), workers):
                for found in pool.map(work, segments[start : start + workers]):
                    _combine(out, found, kind)
        return out

    if kind == 3:
        scales = total(0, np.empty((0, 0)))
        return scales * total(3, scales) ** (1 / order)
    found = total(kind, np.empty((0, 0)))
    return np.sqrt(found) if kind == 2 else found


def _segment(
    segment: tuple[list[Vector], list[Vector] | None, int],
    *,
    kind: int,
    order: float,
    scales: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the sums of powers over up to `SEGMENT` columns from the given start."""
    rows, others, start = segment
    single = all(row.dtype == np.float32 for row in [*rows, *(others or [])])
    dtype: Any = np.float32 if single else np.float64  # differences are float64 either way
    block: Vector = np.zeros((len(rows), WIDTH), dtype)
    against = block if others is None else np.zeros((len(others), WIDTH), dtype)
    lanes, doubts = np.empty(LANES), np.empty(LANES)
    out = np.zeros(shape)
    stop = min(start + SEGMENT, rows[0].size)
    for column in range(start, stop, WIDTH):
        width = min(WIDTH, stop - column)
        for target, sources in ((block, rows), (against, others or [])):
            for row, source in enumerate(sources):
                target[row, :width] = source[column : column + width]
            target[:, width:] = 0  # equal on both sides: no difference
        pair_powers(block, against, kind, order, scales, others is None, lanes, doubts, out)
    return out


def _combine(total: NDArray[np.float64], more: NDArray[np.float64], kind: int) -> None:
    if kind == 0:
        np.maximum(total, more, out=total)
    else:
        total += more


def _root(powers: Any, kind: int, order: float) -> float:
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


def _check_order(order: float) -> int:
    """Return what the kernels call an order, or say which orders there are."""
    if not order >= 1:
        raise InvalidArgumentError(f"order must be at least 1 or infinite; got {order}")
    if math.isinf(order):
        return 0
    return int(order) if order in (1, 2) else 3


def _flat(array: Vector) -> Vector:
    """Return an array as one contiguous vector of a dtype that the kernels take, a view where possible."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float64)


def _measure(values: Measure) -> tuple[Vector, NDArray[np.int64], int]:
    """Return atoms, how often each counts (empty: once), and the total."""
    if isinstance(values, WeightHistogram):
        atoms, counts, total = values.centres, values.counts, values.total
    else:
        atoms = _flat(values)
        counts, total = NO_COUNTS, atoms.size
    if total == 0:
        raise InvalidDataError("no values have no quantiles: a graph of one unit has no births")
    return atoms, counts, total


def _merge(
    first: tuple[Vector, NDArray[np.int64], int],
    second: tuple[Vector, NDArray[np.int64], int],
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


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(parts: list[list[Measure]]) -> int:
    counts = {len(part) for part in parts}
    if len(counts) != 1:
        raise InvalidArgumentError(f"every part needs as many snapshots; got {sorted(counts)}")
    return counts.pop()

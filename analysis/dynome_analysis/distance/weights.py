"""Distances between signatures whose weights are sorted: every Wasserstein distance in closed form. Numbers only.

Everything is computed from differences, with float64 sums, and never through a Gram matrix: consecutive snapshots lie
so close together that ``|x|^2 + |y|^2 - 2 x.y`` cancels. Distances between diagrams are a matching problem:
`dynome_analysis.distance.matching`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.distance.quantiles import (
    as_measure,
    check_order,
    flatten,
    merged_powers,
    root_of_powers,
)
from dynome_analysis.homology.histogram import WeightHistogram, histogram_distance
from dynome_analysis.kernels.differences import LANES, pair_powers, sum_powers
from dynome_analysis.threads import usable_cores
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.distance.quantiles import Measure, Vector

__all__ = ["pairwise_distances", "signature_distance", "sorted_distance"]

# Columns that are compared at a time: a block of 64 rows in float32 is 1 MB and stays in the second-level cache.
WIDTH = 16 * LANES
# Columns per task. Fixed, so that sums do not depend on the number of threads.
SEGMENT = 1 << 16


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
    O(values) time, one pass for orders 1, 2 and inf, two for others; 4 kB beyond the inputs where they are contiguous
    float32 or float64.
    """
    kind = check_order(order)
    parts = []
    for left, right in zip(first, second, strict=True):
        if left.shape != right.shape:
            raise InvalidDataError(
                f"graphs of different size have no distance entry by entry: shapes {left.shape} and {right.shape}; "
                "choose sites with as many units in both, or compare them by quantile_distance"
            )
        parts.append((flatten(left), flatten(right)))
    lanes, doubts = np.empty(LANES), np.empty(LANES)

    def powers(kind: int, scale: float) -> list[float]:
        return [sum_powers(left, right, kind, order, scale, lanes, doubts) for left, right in parts]

    return root_of_powers(powers, kind, order)


def signature_distance(
    first: Sequence[Measure], second: Sequence[Measure], *, order: float = 2.0
) -> tuple[float, float]:
    """Return `sorted_distance` of parts that may be histograms, and how far the one of the weights may be from it.

    Parameters
    ----------
    first, second : sequence of floating arrays or WeightHistogram
        As many on both sides, e.g. births and a histogram of deaths; alike in kind and number of weights.
    order : float
        At least 1; may be infinite.

    Returns
    -------
    distance, bound : float
        The distance between the weights lies within ``bound`` of ``distance``: 0 without histograms. Weights that
        move by a vector e of the same norm change a distance by at most its length, so the bounds of the parts
        (`dynome_analysis.homology.histogram.histogram_distance`) add like the distances do.

    Raises
    ------
    InvalidArgumentError
        An order below 1.
    InvalidDataError
        The graphs have different numbers of units.

    Notes
    -----
    O(values) time, O(bins) for a histogram; no memory to speak of.
    """
    distances, bounds = [], []
    for left, right in zip(first, second, strict=True):
        if isinstance(left, WeightHistogram) and isinstance(right, WeightHistogram):
            distance, bound = histogram_distance(left, right, order=order)
        elif isinstance(left, WeightHistogram) or isinstance(right, WeightHistogram):
            raise InvalidArgumentError("a histogram compares with a histogram: count the weights of both, or of none")
        else:
            distance, bound = sorted_distance([left], [right], order=order), 0.0
        distances.append(distance)
        bounds.append(bound)
    return float(np.linalg.norm(distances, order)), float(np.linalg.norm(bounds, order))


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
        Without ``others`` symmetric with a diagonal of exactly 0. NaN where a row holds a NaN,
        which has no quantiles: ``normalised`` refuses it.

    Raises
    ------
    InvalidArgumentError
        An order below 1, parts of different numbers of snapshots, or histograms, and not ``normalised``; a row that
        does not ascend or holds a NaN, and ``normalised``.
    InvalidDataError
        Rows of a part differ in length, and not ``normalised``.

    Notes
    -----
    O(snapshot^2 * value) time, from the cache: the inputs are read once (twice for orders besides 1, 2 and inf).
    Memory beyond the inputs and the result: per thread one block of 4,096 columns of all snapshots and one matrix like
    the result, whatever the number of values.
    """
    kind = check_order(order)
    parts = [list(part) for part in vectors]
    against = None if others is None else [list(part) for part in others]
    rows, columns = _count(parts), _count(parts if against is None else against)
    if against is not None and len(against) != len(parts):
        raise InvalidArgumentError(f"both groups need the same parts; got {len(parts)} and {len(against)}")
    workers = threads or usable_cores()
    found = np.zeros((rows, columns))
    if normalised:
        pairs = list(combinations(range(rows), 2) if against is None else product(range(rows), range(columns)))
        measured = [[as_measure(row) for row in part] for part in parts]
        measured_against = measured if against is None else [[as_measure(row) for row in part] for part in against]

        def measure(pair: tuple[int, int]) -> float:
            couples = [(part[pair[0]], other[pair[1]]) for part, other in zip(measured, measured_against)]

            def powers(kind: int, scale: float) -> list[float]:
                return [merged_powers(left, right, kind, order, scale) for left, right in couples]

            return root_of_powers(powers, kind, order)

        with ThreadPoolExecutor(workers) as pool:
            for pair, value in zip(pairs, pool.map(measure, pairs)):
                found[pair] = value
    else:
        if any(isinstance(row, WeightHistogram) for part in [*parts, *(against or [])] for row in part):
            raise InvalidArgumentError(
                "histograms are compared by their quantiles: normalised=True, or signature_distance for each pair"
            )
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
        length = max(lengths, default=0) if part and other else 0
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


def _count(parts: list[list[Measure]]) -> int:
    counts = {len(part) for part in parts}
    if len(counts) != 1:
        raise InvalidArgumentError(f"every part needs as many snapshots; got {sorted(counts)}")
    return counts.pop()

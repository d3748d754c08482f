"""Diagrams and sorted weights in one pass: how many, how long, how evenly, and how many alive at each threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SUMS", "summarise_counted", "summarise_points", "summarise_sorted"]

# Columns of the sums that every kernel writes.
SUMS = ("number", "infinite", "total", "squares", "largest", "logarithms")


@kernel
def first_at_least(grid: NDArray[np.float64], value: float) -> int:
    """Return the first position of an ascending ``grid`` whose entry is at least ``value``; its length if none is."""
    low = 0
    high = grid.shape[0]
    while low < high:
        middle = (low + high) // 2
        if grid[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def summarise_points(
    points: NDArray[np.float64], grid: NDArray[np.float64], sums: NDArray[np.float64], alive: NDArray[np.int64]
) -> None:
    """Write sums over the lifetimes of a diagram, and how many bars are alive at every threshold.

    Parameters
    ----------
    points : float64, shape (point, 2)
        Births and deaths in any order of points, no NaN. Bars of length 0 count nowhere.
    grid : float64, shape (threshold,)
        Ascending.
    sums : float64, shape (6,)
        Receives `SUMS`: number of finite bars, of infinite bars; over the finite ones the sum of lifetimes l, the sum
        of l^2, the largest l, the sum of l log2 l.
    alive : int64, shape (threshold + 1,)
        Receives the number of bars with birth <= threshold < death; the last entry is work space.

    Notes
    -----
    O(point log threshold + threshold) time: a bar adds 1 at the first threshold that it is alive at and -1 at the first
    that it is not, and one running sum over the thresholds does the rest.
    """
    sums[:] = 0.0
    alive[:] = 0
    for p in range(points.shape[0]):
        birth = points[p, 0]
        death = points[p, 1]
        if not death > birth:
            continue
        alive[first_at_least(grid, birth)] += 1
        alive[first_at_least(grid, death)] -= 1
        if death == np.inf:
            sums[1] += 1.0
            continue
        lifetime = death - birth
        sums[0] += 1.0
        sums[2] += lifetime
        sums[3] += lifetime * lifetime
        sums[4] = max(sums[4], lifetime)
        sums[5] += lifetime * np.log2(lifetime)
    for g in range(1, alive.shape[0]):
        alive[g] += alive[g - 1]


@kernel
def summarise_sorted(
    values: NDArray[np.floating[Any]],
    grid: NDArray[np.float64],
    sums: NDArray[np.float64],
    reached: NDArray[np.int64],
) -> None:
    """Write sums over weights, and how many of them are at most every threshold.

    Parameters
    ----------
    values : floating, shape (n,)
        Ascending, finite, not negative.
    grid : float64, shape (threshold,)
        Ascending.
    sums : float64, shape (6,)
        Receives `SUMS`, with a weight in place of a lifetime; none is infinite.
    reached : int64, shape (threshold,)
        Receives the number of values <= threshold.

    Notes
    -----
    One merge of values and thresholds, O(n + threshold); sums are float64.
    """
    sums[:] = 0.0
    total = np.float64(0.0)
    squares = np.float64(0.0)
    logarithms = np.float64(0.0)
    position = 0
    for index in range(values.shape[0]):
        value = np.float64(values[index])
        while position < grid.shape[0] and grid[position] < value:
            reached[position] = index
            position += 1
        total += value
        squares += value * value
        if value > 0.0:
            logarithms += value * np.log2(value)
    reached[position:] = values.shape[0]
    sums[0] = values.shape[0]
    sums[2] = total
    sums[3] = squares
    sums[4] = values[-1] if values.shape[0] > 0 else 0.0
    sums[5] = logarithms


@kernel
def summarise_counted(
    values: NDArray[np.floating[Any]],
    counts: NDArray[np.int64],
    grid: NDArray[np.float64],
    sums: NDArray[np.float64],
    reached: NDArray[np.int64],
) -> None:
    """Write what `summarise_sorted` would write if every value were repeated ``counts`` times; O(n + threshold)."""
    sums[:] = 0.0
    number = 0
    position = 0
    for index in range(values.shape[0]):
        count = counts[index]
        if count == 0:
            continue
        value = np.float64(values[index])
        while position < grid.shape[0] and grid[position] < value:
            reached[position] = number
            position += 1
        number += count
        sums[2] += count * value
        sums[3] += count * value * value
        sums[4] = value
        if value > 0.0:
            sums[5] += count * value * np.log2(value)
    reached[position:] = number
    sums[0] = number

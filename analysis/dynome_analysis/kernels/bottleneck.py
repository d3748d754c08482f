"""The least length within which every far point finds a partner: augmenting paths whose longest step is least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel
from .heap import raise_last, sink_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["least_cover"]


@kernel
def least_cover(
    neighbours: NDArray[np.int64],
    distances: NDArray[np.float64],
    complete: bool,  # noqa: FBT001  # kernels are called by position
    limits: NDArray[np.float64],
    lowest: float,
    row_mates: NDArray[np.int64],
    column_mates: NDArray[np.int64],
    cursors: NDArray[np.int64],
    heap_keys: NDArray[np.float64],
    heap_rows: NDArray[np.int64],
    came_from: NDArray[np.int64],
    seen: NDArray[np.int64],
) -> float:
    """Return the least ``eps >= lowest`` for which all rows with ``limits > eps`` have mates of their own within eps.

    ``neighbours`` and ``distances`` (row, near) hold the columns next to every row, nearest first, all of them if
    ``complete``; the answer -1 says that more are needed. Mates (row,) and (column,) start at -1. Work space:
    ``cursors``, ``heap_keys``, ``heap_rows`` (row,), ``came_from``, ``seen`` (column,). eps never falls, so that a
    search only raises it where nothing within eps is left: O(row^2 * near * log row) time at worst.
    """
    near = neighbours.shape[1]
    eps = lowest
    seen[:] = -1
    for source in range(limits.shape[0]):
        if limits[source] <= eps:
            continue
        size = 0
        row = source
        end_row = -1
        end_column = -1
        nearest_out = np.inf
        nearest_row = -1
        while True:
            if row >= 0:
                # A row that has just been reached: it may give up its mate where the diagonal is near enough.
                if limits[row] <= eps:
                    end_row = row
                    break
                if limits[row] < nearest_out:
                    nearest_out = limits[row]
                    nearest_row = row
                cursors[row] = 0
                key = distances[row, 0]
                raise_last(heap_keys, heap_rows, size, key, row)
                size += 1
            # The shortest step out of the rows reached so far.
            key = heap_keys[0]
            if key > eps:
                eps = max(eps, min(key, nearest_out))
                if nearest_out <= eps:
                    end_row = nearest_row
                    break
            at = heap_rows[0]
            if cursors[at] == near:
                return -1.0
            column = neighbours[at, cursors[at]]
            cursors[at] += 1
            if cursors[at] < near:
                key = distances[at, cursors[at]]
            elif complete:
                key = np.inf
            else:
                # What follows is at least as far as this column.
                key = distances[at, near - 1]
            sink_first(heap_keys, heap_rows, size, key, at)
            row = -1
            if seen[column] == source:
                continue
            seen[column] = source
            came_from[column] = at
            if column_mates[column] < 0:
                end_column = column
                break
            row = column_mates[column]
        if end_column < 0:
            if end_row == source:
                continue
            column = row_mates[end_row]
            row_mates[end_row] = -1
        else:
            column = end_column
        while True:
            row = came_from[column]
            following = row_mates[row]
            row_mates[row] = column
            column_mates[column] = row
            if row == source:
                break
            column = following
    return eps

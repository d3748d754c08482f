"""The two triangles of a square matrix: comparing them, packing the upper one, vertices without an edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["compare_triangles", "count_isolated", "pack_upper_triangle"]

# A tile is one cache line wide above the diagonal and half a kilobyte below, where its rows are read across: with
# square tiles of one line, memory delivered them 1.4 times slower.
BAND = 128
LINE = 16


@kernel
def compare_triangles(keys: NDArray[np.uint32]) -> tuple[np.uint32, np.uint32]:
    """Compare a float32 matrix, seen as uint32 (unit, unit), with its transpose, and find the largest bit pattern.

    Returns
    -------
    different : uint32
        Not 0 if some bit differs between the triangles; the search ends there.
    largest : uint32
        At least of the entries on and above the diagonal. Finite numbers of positive sign lie below the pattern of
        infinity, 0x7F800000; infinity, NaN and whatever has a negative sign lie at it or above.

    Notes
    -----
    O(unit^2) time, one read of the matrix, no allocation. A tile of either triangle stays in the first-level cache,
    where the lower one is read across; going through a copy of it took 1.5 times longer.
    """
    n = keys.shape[0]
    different = np.uint32(0)
    largest = np.uint32(0)
    for first in range(0, n, BAND):
        for second in range(first, n, LINE):
            upper = keys[first : first + BAND, second : second + LINE]
            lower = keys[second : second + LINE, first : first + BAND]
            for i in range(upper.shape[0]):
                row = upper[i]
                for j in range(row.shape[0]):
                    different |= row[j] ^ lower[j, i]
                    largest = max(largest, row[j])
        if different != 0:
            break
    return different, largest


@kernel
def pack_upper_triangle(matrix: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the entries above the diagonal of ``matrix`` (unit, unit) into ``out`` (edge,), row by row."""
    n = matrix.shape[0]
    position = 0
    for i in range(n - 1):
        count = n - 1 - i
        out[position : position + count] = matrix[i, i + 1 :]
        position += count


@kernel
def count_isolated(matrix: NDArray[np.float32]) -> int:
    """Return how many rows of ``matrix`` (unit, unit) hold only 0 off the diagonal; a row is left at its first edge."""
    n = matrix.shape[0]
    isolated = 0
    for i in range(n):
        row = matrix[i]
        j = 0
        while j < n and (row[j] == 0 or j == i):
            j += 1
        if j == n:
            isolated += 1
    return isolated

"""Edges of a dense graph as a sorted multiset: packing the upper triangle, taking one multiset out of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["pack_upper_triangle", "subtract_sorted_multiset"]


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
def subtract_sorted_multiset(
    values: NDArray[np.float32], removed: NDArray[np.float32], out: NDArray[np.float32]
) -> int:
    """Write ``values`` without ``removed``, counting multiplicity, into ``out``; return how many were removed.

    Both inputs ascend and ``removed`` is a sub-multiset of ``values``; a return value below ``len(removed)`` says
    that it was not (``out`` then holds only its first ``len(out)`` values). One merge, exact under ties,
    O(len(values)) time.
    """
    found = 0
    position = 0
    for index in range(values.shape[0]):
        if found < removed.shape[0] and values[index] == removed[found]:
            found += 1
        elif position < out.shape[0]:
            out[position] = values[index]
            position += 1
    return found

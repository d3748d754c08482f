"""Sorted weights as multisets: taking one out of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["count_zeros", "gather_zeros", "subtract_sorted_multiset"]


@kernel
def subtract_sorted_multiset(values: NDArray[np.float32], removed: NDArray[np.float32]) -> int:
    """Take ``removed`` out of ``values`` in place, counting multiplicity; return how many were found.

    Both ascend. What is left fills the first ``len(values) - found`` places. ``removed`` is a sub-multiset of
    ``values`` if all of it was found. O(len(values)) time, exact under ties; values below the first removed one are
    not even read, which are nearly all where births are taken out of the edges of a connectome.
    """
    count = values.shape[0]
    if removed.shape[0] == 0:
        return 0
    low = 0
    high = count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < removed[0]:
            low = middle + 1
        else:
            high = middle
    position = low
    index = low
    found = 0
    while index < count:
        if found < removed.shape[0] and values[index] == removed[found]:
            found += 1
        else:
            values[position] = values[index]
            position += 1
        index += 1
    return found


@kernel
def count_zeros(values: NDArray[np.float32]) -> int:
    """Return how many of ``values`` (value,) are zero."""
    count = 0
    for start in range(0, values.size, 1 << 16):
        part = values[start : start + (1 << 16)]
        here = np.int32(0)
        for i in range(part.size):
            here += np.int32(part[i] == 0.0)
        count += int(here)
    return count


@kernel
def gather_zeros(values: NDArray[np.float32]) -> None:
    """Move the zeros among non-negative ``values`` (value,) to the front, in place; the others keep their order.

    O(value) time, without a branch on the values.
    """
    free = values.size - 1
    for i in range(values.size - 1, -1, -1):
        value = values[i]
        values[free] = value
        free -= int(value > 0.0)
    for i in range(free + 1):
        values[i] = 0.0

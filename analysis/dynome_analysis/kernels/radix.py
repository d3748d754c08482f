"""Radix sort of non-negative float32, for processors on which numpy sorts by comparing one pair at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DIGIT_BITS", "PASSES", "radix_sort"]

# 31 bits of a non-negative float in three digits: 2048 places written at a time fit the second-level cache.
DIGIT_BITS = 11
PASSES = 3
SIZE = 1 << DIGIT_BITS


@kernel
def radix_sort(keys: NDArray[np.int32], other: NDArray[np.int32], places: NDArray[np.int64]) -> bool:
    """Sort ``keys`` (value,), bit patterns of non-negative floats, from the last digit to the first.

    Parameters
    ----------
    keys : int32, shape (value,)
        Ascends afterwards, unless the result says otherwise.
    other : int32, shape (value,)
        Work space.
    places : int64, shape (3, 2048)
        Work space: (`PASSES`, 2^`DIGIT_BITS`).

    Returns
    -------
    bool
        Whether the sorted values lie in ``other`` instead of ``keys``.

    Notes
    -----
    O(value) time: one reading pass that counts all digits and one pass per digit; a digit that all values share is
    passed over.
    """
    count = keys.shape[0]
    places[:] = 0
    for index in range(count):
        key = keys[index]
        places[0, key & (SIZE - 1)] += 1
        places[1, (key >> DIGIT_BITS) & (SIZE - 1)] += 1
        places[2, (key >> (2 * DIGIT_BITS)) & (SIZE - 1)] += 1
    source, target = keys, other
    moved = False
    for digit in range(PASSES):
        shift = digit * DIGIT_BITS
        place = places[digit]
        start = 0
        shared = False
        for value in range(SIZE):
            size = place[value]
            shared |= size == count
            place[value] = start
            start += size
        if shared:
            continue
        for index in range(count):
            key = source[index]
            value = (key >> shift) & (SIZE - 1)
            target[place[value]] = key
            place[value] += 1
        source, target = target, source
        moved = not moved
    return moved

"""The lowest and the highest bit of a word of 64."""

from __future__ import annotations

import numpy as np

from .flags import kernel

__all__ = ["highest_bit", "lowest_bit"]

# The remainders of 2 ** k modulo 67 differ for all k < 64. No step overflows, so it also runs uncompiled.
REMAINDERS = np.uint64(67)
BIT_OF_REMAINDER = np.zeros(67, np.int64)
BIT_OF_REMAINDER[[2**bit % 67 for bit in range(64)]] = np.arange(64)

ZERO = np.uint64(0)
ONE = np.uint64(1)


@kernel
def lowest_bit(word: np.uint64) -> int:
    """Return the place of the lowest bit of ``word``, which must not be 0."""
    place: int = BIT_OF_REMAINDER[np.int64((word ^ (word & (word - ONE))) % REMAINDERS)]
    return place


@kernel
def highest_bit(word: np.uint64) -> int:
    """Return the place of the highest bit of ``word``, which must not be 0."""
    place = 0
    for step in (32, 16, 8, 4, 2, 1):
        upper = word >> np.uint64(step)
        if upper != ZERO:
            word = upper
            place += step
    return place

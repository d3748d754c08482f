"""The edges of a filtration, shortest first, drawn from a symmetric matrix a slice of lengths at a time.

Lengths are compared as the bit patterns of non-negative float32, exclusive-or ``flip``: 0 for distances, all 31 value
bits for weights (the heaviest first). No float32 ``1 - weight`` is formed, which would merge small weights. An edge is
one uint64: its key in the upper half, its two units (smaller first, 16 bits each) in the lower, so that sorting the
numbers sorts by (length, units), a total order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["count_edges", "draw_edges", "survey_rows"]

SHORT = 24


@kernel
def survey_rows(
    bits: NDArray[np.int32],
    flip: int,
    nearest: NDArray[np.int32],
    farthest: NDArray[np.int32],
    totals: NDArray[np.int64],
) -> None:
    """Write the smallest, the largest and the total key of every row of ``bits`` (unit, unit), diagonal left out.

    O(n^2) time, no allocation.
    """
    n = bits.shape[0]
    for i in range(n):
        row = bits[i]
        low = np.int32(2147483647)
        high = np.int32(0)
        total = np.int64(0)
        for j in range(i):
            key = row[j] ^ flip
            low = min(low, key)
            high = max(high, key)
            total += key
        for j in range(i + 1, n):
            key = row[j] ^ flip
            low = min(low, key)
            high = max(high, key)
            total += key
        nearest[i] = low
        farthest[i] = high
        totals[i] = total


@kernel
def count_edges(
    bits: NDArray[np.int32], flip: int, lowest: int, shift: int, bound: int, counts: NDArray[np.int64]
) -> None:
    """Add to ``counts`` the edges shorter than ``bound`` by ``(key - lowest) >> shift``.

    O(n^2) time, no allocation.
    """
    n = bits.shape[0]
    for i in range(n):
        row = bits[i]
        for j in range(i + 1, n):
            key = row[j] ^ flip
            if key < bound:
                counts[(key - lowest) >> shift] += 1


@kernel
def draw_edges(
    bits: NDArray[np.int32],
    flip: int,
    lowest: int,
    shift: int,
    bound: int,
    first: int,
    positions: NDArray[np.int64],
    out: NDArray[np.uint64],
) -> None:
    """Write the edges of some bins of `count_edges`, sorted.

    Parameters
    ----------
    bits : int32, shape (unit, unit)
        Bit patterns of the lengths or weights; only the upper triangle is read. At most 65,536 units.
    flip, lowest, shift, bound : int
        As in `count_edges`.
    first : int
        The first bin; the number of bins is ``positions.size - 1``.
    positions : int64, shape (bin + 1,)
        Where each bin starts in ``out``; overwritten (afterwards: where each bin ends).
    out : uint64, shape (edge,)
        Receives the edges.

    Notes
    -----
    O(n^2) time and O(edges * log(edges of a bin)); no allocation. Tied edges come in index order already.
    """
    n = bits.shape[0]
    start = lowest + (first << shift)
    end = min(bound, start + ((positions.size - 1) << shift))
    for i in range(n):
        row = bits[i]
        for j in range(i + 1, n):
            key = int(row[j] ^ flip)
            if start <= key and key < end:
                place = (key - start) >> shift
                at = positions[place]
                positions[place] = at + 1
                out[at] = np.uint64((key << 32) | (i << 16) | j)
    begin = 0
    for place in range(positions.size - 1):
        finish = int(positions[place])
        if finish - begin <= SHORT:
            for at in range(begin + 1, finish):
                edge = out[at]
                hole = at
                while hole > begin and out[hole - 1] > edge:
                    out[hole] = out[hole - 1]
                    hole -= 1
                out[hole] = edge
        else:
            out[begin:finish].sort()
        begin = finish

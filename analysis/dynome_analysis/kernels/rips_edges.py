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

__all__ = ["DIGIT", "count_edges", "draw_edges", "sort_edges", "survey_rows"]

DIGIT = 11


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
def draw_edges(bits: NDArray[np.int32], flip: int, start: int, end: int, out: NDArray[np.uint64]) -> int:
    """Write the edges with keys from ``start`` to below ``end`` in index order, and return their number.

    Parameters
    ----------
    bits : int32, shape (unit, unit)
        Bit patterns of the lengths or weights; only the upper triangle is read. At most 65,536 units.
    flip, start, end : int
    out : uint64, shape (edge + 1,)
        Receives the edges; the last place is scratch, since every pair is written and only kept if it belongs.

    Notes
    -----
    O(n^2) time, no allocation. A branch on what belongs would be mispredicted too often: 4 times slower.
    """
    n = bits.shape[0]
    at = 0
    for i in range(n):
        row = bits[i]
        for j in range(i + 1, n):
            key = row[j] ^ flip
            out[at] = np.uint64((np.int64(key) << 32) | (i << 16) | j)
            at += (key >= start) & (key < end)
    return at


@kernel
def sort_edges(
    edges: NDArray[np.uint64], spare: NDArray[np.uint64], start: int, end: int, counts: NDArray[np.int64]
) -> bool:
    """Sort edges with keys from ``start`` to below ``end``; True if the result is in ``spare``, not in ``edges``.

    Counting sort by one digit of the key after the other, lowest first; ``counts`` (2 ** ``DIGIT``,) is work space. It
    keeps the order of equal digits, so tied edges stay in index order.

    Notes
    -----
    O(edges) time for each digit of ``end - start``, no allocation. numpy's sort of uint64 is as fast where it has
    vector instructions for it, and 10 times slower where not.
    """
    span = end - 1 - start
    moved = False
    shift = 0
    while span >> shift > 0:
        source = spare if moved else edges
        target = edges if moved else spare
        counts[:] = 0
        for at in range(source.size):
            counts[((int(np.int64(source[at]) >> 32) - start) >> shift) & (counts.size - 1)] += 1
        total = 0
        for digit in range(counts.size):
            number = counts[digit]
            counts[digit] = total
            total += number
        for at in range(source.size):
            edge = source[at]
            digit = ((int(np.int64(edge) >> 32) - start) >> shift) & (counts.size - 1)
            target[counts[digit]] = edge
            counts[digit] += 1
        moved = not moved
        shift += DIGIT
    return moved

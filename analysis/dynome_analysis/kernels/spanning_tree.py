"""Maximum spanning tree of a dense graph, by Prim's algorithm on whole rows.

Non-negative IEEE floats order like their bit patterns, so weights are read as int32: the hot loops are maxima of
integers, which the compiler turns into vector instructions without fast mathematics. Blocks are slices, because an
index that starts anywhere else than at 0 might be negative for all that numba knows, and the test for that keeps a loop
from being vectorised: with ``range(start, stop)`` the same loops took six times longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["maximum_spanning_tree_edges", "maximum_spanning_tree_weights"]

BLOCK = 256
# The key of a finished vertex: no weight exceeds it, so that it stays. Typed, or the loops would run on 64 bits.
FINISHED = np.int32(2147483647)
NONE = np.int32(-1)


@kernel
def maximum_spanning_tree_weights(keys: NDArray[np.int32], reach: NDArray[np.int32], out: NDArray[np.int32]) -> bool:
    """Write the n - 1 weights of the maximum spanning tree, in the order in which Prim's algorithm finds them.

    Parameters
    ----------
    keys : int32, shape (unit, unit)
        Bit patterns of the weights: symmetric, none negative. The diagonal is never used.
    reach : int32, shape (unit,)
        Work space: the heaviest edge from the tree to each vertex.
    out : int32, shape (unit - 1,)
        Receives the bit patterns of the weights.

    Returns
    -------
    bool
        False if a weight was `FINISHED`, a NaN, in the way of a tree; nothing is read or written out of bounds then.

    Notes
    -----
    O(n^2) time, each row read once, no allocation.
    """
    n = keys.shape[0]
    reach[:] = 0
    reach[0] = FINISHED
    vertex = np.intp(0)
    for step in range(n - 1):
        row = keys[vertex]
        best = NONE
        best_start = 0
        for start in range(0, n, BLOCK):
            block_reach = reach[start : start + BLOCK]
            block_row = row[start : start + BLOCK]
            block_best = NONE
            for j in range(block_reach.shape[0]):
                key = max(block_reach[j], block_row[j])
                block_reach[j] = key
                block_best = max(block_best, key if key != FINISHED else NONE)
            if block_best > best:
                best = block_best
                best_start = start
        if best == NONE:
            return False
        # The first of the block that reaches so far, found without a branch.
        block_reach = reach[best_start : best_start + BLOCK]
        offset = np.int32(BLOCK)
        for j in range(block_reach.shape[0]):
            offset = min(offset, np.int32(j) if block_reach[j] == best else np.int32(BLOCK))
        vertex = best_start + offset
        out[step] = best
        reach[vertex] = FINISHED
    return True


@kernel
def maximum_spanning_tree_edges(
    keys: NDArray[np.int32],
    reach: NDArray[np.int32],
    partner: NDArray[np.int32],
    out: NDArray[np.int32],
    edges: NDArray[np.int32],
) -> bool:
    """Write weights and edges of the maximum spanning tree; of two edges of equal weight the smaller (i, j) wins.

    With that rule all edges differ and the tree is unique. For the edges to one vertex it compares the other ends, for
    edges to different vertices the pairs.

    Parameters
    ----------
    keys, reach, out
        As for `maximum_spanning_tree_weights`.
    partner : int32, shape (unit,)
        Work space: the vertex of the tree at the other end of that edge.
    edges : int32, shape (unit - 1, 2)
        Receives the ends of every edge, the smaller first.

    Returns
    -------
    bool
        As `maximum_spanning_tree_weights`.
    """
    n = keys.shape[0]
    reach[:] = NONE
    partner[:] = 0
    reach[0] = FINISHED
    vertex = np.int32(0)
    for step in range(n - 1):
        row = keys[vertex]
        best = NONE
        for j in range(n):
            key = max(row[j], np.int32(0))
            nearer = (key > reach[j]) | ((key == reach[j]) & (vertex < partner[j]))
            reach[j] = key if nearer else reach[j]
            partner[j] = vertex if nearer else partner[j]
            best = max(best, reach[j] if reach[j] != FINISHED else NONE)
        if best == NONE:
            return False
        first = np.int32(n)
        last = NONE
        for j in range(n):
            first = min(first, np.int32(j) if reach[j] == best else np.int32(n))
            last = max(last, np.int32(j) if reach[j] == best else NONE)
        vertex = first
        if first != last:  # ties: rare where weights are measured
            for j in range(first + 1, last + 1):
                if reach[j] == best:
                    smaller = min(j, partner[j]) - min(vertex, partner[vertex])
                    larger = max(j, partner[j]) - max(vertex, partner[vertex])
                    if smaller < 0 or (smaller == 0 and larger < 0):
                        vertex = np.int32(j)
        out[step] = best
        edges[step, 0] = min(vertex, partner[vertex])
        edges[step, 1] = max(vertex, partner[vertex])
        reach[vertex] = FINISHED
    return True

"""Maximum spanning tree of a dense graph, by Prim's algorithm on whole rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["maximum_spanning_tree_weights"]

BLOCK = 64


@kernel
def maximum_spanning_tree_weights(
    keys: NDArray[np.int32], reach: NDArray[np.int32], cap: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    """Write the n - 1 weights of the maximum spanning tree, in the order in which Prim's algorithm finds them.

    Non-negative IEEE floats order like their bit patterns, so ``keys`` is the float32 weight matrix seen as int32: the
    hot loop is max, min, max over integers, which the compiler turns into vector instructions without fast mathematics.
    A finished vertex is held down by ``cap``, so that this loop has no branch.

    Parameters
    ----------
    keys : int32, shape (unit, unit)
        Bit patterns of the weights: symmetric, none negative. The diagonal is never used.
    reach, cap : int32, shape (padded,)
        Work space; ``padded`` is the number of units rounded up to a multiple of 64 (``BLOCK``).
    out : int32, shape (unit - 1,)
        Receives the bit patterns of the weights.

    Notes
    -----
    O(n^2) time, no allocation. The winner is searched only in the first block that holds the largest key.
    """
    n = keys.shape[0]
    padded = reach.shape[0]
    for j in range(padded):
        reach[j] = -1
        cap[j] = 2147483647 if j < n else -1
    cap[0] = -1
    vertex = 0
    for step in range(n - 1):
        row = keys[vertex]
        best = -1
        best_start = 0
        for start in range(0, n, BLOCK):
            block_best = -1
            if start + BLOCK <= n:
                for j in range(start, start + BLOCK):
                    key = min(max(reach[j], row[j]), cap[j])
                    reach[j] = key
                    block_best = max(block_best, key)
            else:
                for j in range(start, n):
                    key = min(max(reach[j], row[j]), cap[j])
                    reach[j] = key
                    block_best = max(block_best, key)
            if block_best > best:
                best = block_best
                best_start = start
        vertex = best_start
        while reach[vertex] != best:
            vertex += 1
        out[step] = best
        cap[vertex] = -1

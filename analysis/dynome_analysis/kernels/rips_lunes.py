"""The filtration of a Rips complex, edge by edge: lunes, their components, what is born and what dies.

The lune of an edge are the units that earlier edges join to both of its ends: one AND of two rows of bits.
`dynome_analysis.persistence.loops` says why the outcome is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .bits import lowest_bit
from .flags import kernel
from .rips_reduction import ALIVE, BORN, PENDING, TREE_EDGE, LoopState, reduce_column, sweep_loop, walk_loop

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EXHAUSTED", "FINISHED", "FULL", "follow_edges"]

EXHAUSTED, FULL, FINISHED = 0, 1, 2

ZERO = np.uint64(0)
ONE = np.uint64(1)


@kernel
def follow_edges(
    edges: NDArray[np.uint64],
    start: int,
    state: LoopState,
    bits: NDArray[np.int32],
    flip: int,
    bound: int,
    patience: int,
) -> tuple[int, int]:
    """Add edges to the complex, with every simplex that they complete.

    Parameters
    ----------
    edges : uint64, shape (edge,)
        The next edges in ascending order, as `rips_edges.draw_edges` writes them.
    start : int
        The first one to add.
    state : LoopState
        Updated.
    bits : int32, shape (unit, unit)
        Bit patterns of lengths (``flip`` 0) or weights (``flip`` 2 ** 31 - 1), symmetric.
    flip, bound : int
        Keys are ``bits ^ flip``; edges with a key of ``bound`` or more do not belong to the filtration.
    patience : int
        Longest walk, see `rips_reduction.walk_loop`.

    Returns
    -------
    status : int
        ``EXHAUSTED``: go on with later edges. ``FULL``: an array of ``state`` is too short; go on with the same edge
        once it has grown. ``FINISHED``: every class is dead, and none will be born.
    place : int
        The first edge that was not added.

    Notes
    -----
    O(units / 64) word operations for most edges, O(units^2 / 64) for a lune that is sparse inside. No allocation.
    """
    label = state.label
    # Entries are read as adjacency[unit, word]: a row of its own would be counted as a reference, which cost half of
    # the time.
    adjacency = state.adjacency
    path = state.path
    lune = state.lune
    rest = state.rest
    stack = state.stack
    column = state.column
    born = state.born
    died = state.died
    dead = state.dead
    relation = state.relation
    relations = state.relations
    settled = state.settled
    counters = state.counters
    words = adjacency.shape[1]
    if counters[ALIVE] == 0 and _none_to_come(adjacency, label, counters, bits, flip, bound):
        return FINISHED, start
    for at in range(start, edges.size):
        edge = int(np.int64(edges[at]))
        key = edge >> 32
        i = int(label[(edge >> 16) & 65535])
        j = int(label[edge & 65535])
        if j < i:
            i, j = j, i
        alive = counters[ALIVE]
        w = 0
        while w < words and adjacency[i, w] & adjacency[j, w] == ZERO:
            w += 1
        if w == words:
            if counters[BORN] == born.size:
                return FULL, at
            path[i, j] = _close(state.parent, counters, born, died, i, j, key)
        else:
            middle = (w << 6) + lowest_bit(adjacency[i, w] & adjacency[j, w])
            path[i, j] = middle
            if alive > 0:
                left = ZERO
                for v in range(words):
                    common = adjacency[i, v] & adjacency[j, v]
                    outside = common & ~adjacency[middle, v]
                    lune[v] = common & adjacency[middle, v]
                    rest[v] = outside
                    left |= outside
                if left != ZERO and _leave_components(lune, rest, adjacency):
                    # What is done before room runs out stays true, so that the edge may be repeated.
                    unit = _take_component(rest, adjacency, stack)
                    while unit >= 0:
                        if not walk_loop(path, column, stack, i, middle, j, unit, patience) and not sweep_loop(
                            state, i, middle, j, unit, bits, flip
                        ):
                            return FULL, at
                        if not reduce_column(column, dead, relation, relations, settled, died, counters, key):
                            return FULL, at
                        unit = _take_component(rest, adjacency, stack)
        adjacency[i, j >> 6] |= ONE << np.uint64(j & 63)
        adjacency[j, i >> 6] |= ONE << np.uint64(i & 63)
        if counters[ALIVE] == 0:
            p = label[counters[PENDING]]
            q = label[counters[PENDING + 1]]
            # The pair in question can only have changed by an edge at one of its units.
            touches = (i - p) * (i - q) * (j - p) * (j - q) == 0
            if (alive > 0 or touches) and _none_to_come(adjacency, label, counters, bits, flip, bound):
                return FINISHED, at + 1
    return EXHAUSTED, edges.size


@kernel
def _close(
    parent: NDArray[np.int32],
    counters: NDArray[np.int64],
    born: NDArray[np.int32],
    died: NDArray[np.int32],
    i: int,
    j: int,
    key: int,
) -> int:
    """Note an edge without a lune, which joins two components or closes a loop; return its entry in the paths."""
    first = _root(parent, i)
    second = _root(parent, j)
    if first != second:
        parent[second] = first
        return TREE_EDGE
    number = int(counters[BORN])
    born[number] = key
    died[number] = -1
    counters[BORN] = number + 1
    counters[ALIVE] += 1
    return -2 - number


@kernel
def _root(parent: NDArray[np.int32], unit: int) -> int:
    while parent[unit] != unit:
        parent[unit] = parent[parent[unit]]
        unit = parent[unit]
    return unit


@kernel
def _leave_components(lune: NDArray[np.uint64], rest: NDArray[np.uint64], adjacency: NDArray[np.uint64]) -> bool:
    """Move from ``rest`` to ``lune`` what is connected with it; say whether anything is left.

    A unit that touches ``lune`` takes its neighbours along, whole words at a time: most lunes are crowded, and a few
    such units empty ``rest``.
    """
    words = rest.size
    moved = True
    while moved:
        moved = False
        left = ZERO
        for w in range(words):
            word = rest[w]
            while word != ZERO:
                unit = (w << 6) + lowest_bit(word)
                word &= word - ONE
                v = 0
                while v < words and adjacency[unit, v] & lune[v] == ZERO:
                    v += 1
                if v < words:
                    moved = True
                    for v in range(words):
                        taken = rest[v] & adjacency[unit, v]
                        rest[v] ^= taken
                        lune[v] |= taken
                    word &= rest[w]
            left |= rest[w]
        if left == ZERO:
            return False
    return True


@kernel
def _take_component(rest: NDArray[np.uint64], adjacency: NDArray[np.uint64], stack: NDArray[np.int32]) -> int:
    """Take the component of the first unit of ``rest`` out of ``rest``; return that unit, or -1 if there is none."""
    words = rest.size
    w = 0
    while w < words and rest[w] == ZERO:
        w += 1
    if w == words:
        return -1
    first = (w << 6) + lowest_bit(rest[w])
    rest[w] &= rest[w] - ONE
    stack[0] = first
    depth = 1
    while depth > 0:
        depth -= 1
        unit = stack[depth]
        for v in range(words):
            found = rest[v] & adjacency[unit, v]
            if found != ZERO:
                rest[v] ^= found
                while found != ZERO:
                    stack[depth] = (v << 6) + lowest_bit(found)
                    depth += 1
                    found &= found - ONE
    return first


@kernel
def _none_to_come(
    adjacency: NDArray[np.uint64],
    label: NDArray[np.int32],
    counters: NDArray[np.int64],
    bits: NDArray[np.int32],
    flip: int,
    bound: int,
) -> bool:
    """Say whether no class can be born any more: every two units are joined, have a lune, or are too far apart.

    What two units fulfil once they fulfil for ever, so one walk over all pairs serves the whole filtration; it stops
    at a pair that does not, and goes on from there.
    """
    n = bits.shape[0]
    words = adjacency.shape[1]
    i = counters[PENDING]
    j = counters[PENDING + 1]
    while i < n - 1:
        while j < n:
            if (bits[i, j] ^ flip) < bound:
                first = label[i]
                second = label[j]
                w = 0
                while w < words and adjacency[first, w] & adjacency[second, w] == ZERO:
                    w += 1
                if w == words:
                    counters[PENDING] = i
                    counters[PENDING + 1] = j
                    return False
            j += 1
        i += 1
        j = i + 1
    counters[PENDING] = n - 1
    counters[PENDING + 1] = n - 1
    return True

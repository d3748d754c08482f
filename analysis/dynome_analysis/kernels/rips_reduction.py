"""Loops of a growing Rips complex, as columns of bits: which are born, which die, and what dead ones equal.

A class is a loop that was born; its number is its place in the order of birth. A column is a sum of classes, 64 to a
word. A sum that becomes zero kills its youngest living class, which from then on equals the others: its relation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .bits import highest_bit
from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALIVE", "BORN", "PENDING", "TREE_EDGE", "USED", "LoopState", "reduce_column", "sweep_loop", "walk_loop"]

# Places in LoopState.counters: classes born, classes alive, words of relations in use, the pair of units in question.
BORN, ALIVE, USED, PENDING = 0, 1, 2, 3

# What LoopState.path holds for an edge that joins two components; -2 - number for one that closes a loop.
TREE_EDGE = -1

ZERO = np.uint64(0)
ONE = np.uint64(1)


class LoopState(NamedTuple):
    """All that lives between two edges. Units are renumbered, those close to many others first.

    So the first unit of a lune is likely to be joined to all the others. Of ``path`` only the places of edges seen
    are ever read, row below column: its memory is touched as the filtration grows.
    """

    label: NDArray[np.int32]  # (unit,) the new number of each unit
    unit: NDArray[np.int32]  # (unit,) the unit of each new number
    adjacency: NDArray[np.uint64]  # (unit, word) bits of the units joined to a unit, and of itself
    path: NDArray[np.int32]  # (unit, unit) a unit that an edge may be led over; or see TREE_EDGE
    parent: NDArray[np.int32]  # (unit,) forest of the components
    born: NDArray[np.int32]  # (class,) key of the edge that closed the loop
    died: NDArray[np.int32]  # (class,) key of the edge that filled it, -1 while alive
    relation: NDArray[np.int64]  # (class,) where the relation of a dead class starts in ``relations``
    settled: NDArray[np.int64]  # (class,) how many classes were dead when its relation was last rewritten
    dead: NDArray[np.uint64]  # (class / 64,) bits of the dead classes
    column: NDArray[np.uint64]  # (class / 64,) the column in work, zero between columns
    relations: NDArray[np.uint64]  # one after the other, each as long as its class's own word says
    heap: NDArray[np.uint64]  # edges in work in `sweep_loop`, at least 4
    stack: NDArray[np.int32]  # (max(unit, 2 * patience + 2),) work space
    lune: NDArray[np.uint64]  # (word,) work space
    rest: NDArray[np.uint64]  # (word,) work space
    counters: NDArray[np.int64]  # (PENDING + 2,) see BORN, ALIVE, USED, PENDING


@kernel
def walk_loop(
    path: NDArray[np.int32],
    column: NDArray[np.uint64],
    stack: NDArray[np.int32],
    first: int,
    second: int,
    third: int,
    fourth: int,
    patience: int,
) -> bool:
    """Add to the column, all zero before, the classes that a loop of four edges runs through.

    An edge with a lune is led over a unit of it, and so on, down to edges without. Such a walk has a few dozen
    edges on connectomes (at most 408 at 2048 units), but contrived weights can double it at every level: a walk of
    ``patience`` steps is given up, the column is zero again, and False says that `sweep_loop` has to do it.
    """
    if (
        _walk(path, column, stack, first, second, patience)
        and _walk(path, column, stack, second, third, patience)
        and _walk(path, column, stack, third, fourth, patience)
        and _walk(path, column, stack, fourth, first, patience)
    ):
        return True
    column[:] = ZERO
    return False


@kernel
def _walk(
    path: NDArray[np.int32], column: NDArray[np.uint64], stack: NDArray[np.int32], i: int, j: int, patience: int
) -> bool:
    """Walk from i to j and say whether that came to an end."""
    depth = 0
    for _ in range(patience):
        step = path[i, j] if i < j else path[j, i]
        if step >= 0:
            stack[depth] = step
            stack[depth + 1] = j
            depth += 2
            j = step
            continue
        if step != TREE_EDGE:
            number = -2 - step
            column[number >> 6] ^= ONE << np.uint64(number & 63)
        if depth == 0:
            return True
        depth -= 2
        i = stack[depth]
        j = stack[depth + 1]
    return False


@kernel
def sweep_loop(
    state: LoopState, first: int, second: int, third: int, fourth: int, bits: NDArray[np.int32], flip: int
) -> bool:
    """Do what `walk_loop` does, longest edge first: an edge that is met twice cancels before it is led on.

    So every edge is led on at most once, in O(edges * log(edges)). False, and a column of zeros, if ``state.heap``
    is too short.
    """
    heap = state.heap
    path = state.path
    column = state.column
    label = state.label
    size = _push(heap, 0, state.unit, first, second, bits, flip)
    size = _push(heap, size, state.unit, second, third, bits, flip)
    size = _push(heap, size, state.unit, third, fourth, bits, flip)
    size = _push(heap, size, state.unit, fourth, first, bits, flip)
    while size > 0:
        edge = heap[0]
        odd = False
        while size > 0 and heap[0] == edge:
            size = _pop(heap, size)
            odd = not odd
        if not odd:
            continue
        place = int(np.int64(edge))
        i = int(label[(place >> 16) & 65535])
        j = int(label[place & 65535])
        step = path[i, j] if i < j else path[j, i]
        if step >= 0:
            if size + 2 > heap.size:
                column[:] = ZERO
                return False
            size = _push(heap, size, state.unit, i, step, bits, flip)
            size = _push(heap, size, state.unit, step, j, bits, flip)
        elif step != TREE_EDGE:
            number = -2 - step
            column[number >> 6] ^= ONE << np.uint64(number & 63)
    return True


@kernel
def _push(
    heap: NDArray[np.uint64], size: int, unit: NDArray[np.int32], i: int, j: int, bits: NDArray[np.int32], flip: int
) -> int:
    """Add an edge to the heap (longest first) and return its new size."""
    first = int(unit[i])
    second = int(unit[j])
    if second < first:
        first, second = second, first
    edge = np.uint64((int(bits[first, second] ^ flip) << 32) | (first << 16) | second)
    hole = size
    while hole > 0 and heap[(hole - 1) >> 1] < edge:
        heap[hole] = heap[(hole - 1) >> 1]
        hole = (hole - 1) >> 1
    heap[hole] = edge
    return size + 1


@kernel
def _pop(heap: NDArray[np.uint64], size: int) -> int:
    """Take the longest edge off the heap and return its new size."""
    size -= 1
    edge = heap[size]
    hole = 0
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= edge:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = edge
    return size


@kernel
def _settle(relations: NDArray[np.uint64], relation: NDArray[np.int64], dead: NDArray[np.uint64], number: int) -> None:
    """Rewrite the relation of a dead class in living ones, so that no later column repeats the substitution.

    Without this a column of 1024 independent units took 866 substitutions, with it 10, and 47 here.
    """
    start = relation[number]
    w = number >> 6
    while w >= 0:
        gone = relations[start + w] & dead[w]
        if gone == ZERO:
            w -= 1
            continue
        bit = highest_bit(gone)
        other = relation[(w << 6) + bit]
        relations[start + w] ^= ONE << np.uint64(bit)
        for v in range(w + 1):
            relations[start + v] ^= relations[other + v]


@kernel
def reduce_column(
    column: NDArray[np.uint64],
    dead: NDArray[np.uint64],
    relation: NDArray[np.int64],
    relations: NDArray[np.uint64],
    settled: NDArray[np.int64],
    died: NDArray[np.int32],
    counters: NDArray[np.int64],
    key: int,
) -> bool:
    """Declare the column zero at ``key``: written in living classes, its youngest dies. Leaves a column of zeros.

    The arrays are those of `LoopState`. Returns False, and has killed nothing, if ``relations`` has no room.
    """
    deaths = counters[BORN] - counters[ALIVE]
    highest = -1
    w = (counters[BORN] - 1) >> 6
    while w >= 0:
        gone = column[w] & dead[w]
        if gone == ZERO:
            if highest < 0 and column[w] != ZERO:
                highest = w
            w -= 1
            continue
        bit = highest_bit(gone)
        number = (w << 6) + bit
        if settled[number] != deaths:
            _settle(relations, relation, dead, number)
            settled[number] = deaths
        start = relation[number]
        column[w] ^= ONE << np.uint64(bit)
        for v in range(w + 1):
            column[v] ^= relations[start + v]
    if highest < 0:
        return True
    bit = highest_bit(column[highest])
    number = (highest << 6) + bit
    used = counters[USED]
    fits: bool = used + highest + 1 <= relations.size
    if fits:
        column[highest] ^= ONE << np.uint64(bit)
        for v in range(highest + 1):
            relations[used + v] = column[v]
        relation[number] = used
        settled[number] = deaths + 1
        died[number] = key
        dead[highest] |= ONE << np.uint64(bit)
        counters[USED] = used + highest + 1
        counters[ALIVE] -= 1
    for v in range(highest + 1):
        column[v] = ZERO
    return fits

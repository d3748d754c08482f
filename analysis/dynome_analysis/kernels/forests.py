"""Spanning forests as edge lists, and how weak the weakest edge between two of their vertices is.

Weights are float32 seen as int32 ``keys``, as in `spanning_tree`: non-negative floats order like their bit patterns.
Of two edges with the same key the one with the smaller ``tie`` is the heavier, which makes the forest unique.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ABSENT", "LARGEST", "arrange_forest", "edge_tie", "keep_forest", "tile_floors"]

# Keys below and above those of all weights: no path, and the path from a vertex to itself.
ABSENT = -1
LARGEST = 2147483647


@kernel
def edge_tie(first: int, second: int) -> int:
    """Return what orders edges of equal weight: by the smaller of their labels, then by the larger, both below 2^31."""
    return (min(first, second) << 32) | max(first, second)


@kernel
def find_root(component: NDArray[np.int32], vertex: int) -> int:
    """Return the root of a vertex in a union-find structure, halving the path on the way."""
    while component[vertex] != vertex:
        component[vertex] = component[component[vertex]]
        vertex = component[vertex]
    return vertex


@kernel
def keep_forest(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    order: NDArray[np.int64],
    component: NDArray[np.int32],
    kept: NDArray[np.int64],
) -> int:
    """Write the positions of the edges of a maximum spanning forest, heaviest first; return how many (Kruskal).

    Parameters
    ----------
    first, second : int32, shape (edge,)
        Ends of the edges, vertices of ``component``.
    order : int64, shape (edge,)
        Positions of the edges, heaviest first.
    component : int32, shape (vertex,)
        Work space.
    kept : int64, shape (vertex,)
        Receives the positions.
    """
    for vertex in range(component.shape[0]):
        component[vertex] = vertex
    count = 0
    for position in order:
        a = find_root(component, first[position])
        b = find_root(component, second[position])
        if a != b:
            component[b] = a
            kept[count] = position
            count += 1
    return count


@kernel
def arrange_forest(
    keys: NDArray[np.int32],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    ties: NDArray[np.int64],
    order: NDArray[np.int64],
    work: NDArray[np.int32],
    arrangement: NDArray[np.int32],
    gap_keys: NDArray[np.int32],
    gap_ties: NDArray[np.int64],
) -> None:
    """Put the vertices of a graph in a row, so that paths of its maximum spanning forest become stretches of the row.

    Kruskal joins components from the heaviest edge down; here each keeps its vertices in a row, and joining two puts
    one row behind the other with the edge in the gap. Then the weakest edge on the forest's path between two vertices
    is the weakest gap between them: that edge joined the components that hold them, and everything else between them
    was joined before.

    Parameters
    ----------
    keys, first, second, ties : shape (edge,)
        Weights, ends and ties of the edges.
    order : int64, shape (edge,)
        Positions of the edges, heaviest first.
    work : int32, shape (4, vertex)
        Work space.
    arrangement : int32, shape (vertex,)
        Receives the vertices in their places.
    gap_keys : int32, shape (vertex,)
    gap_ties : int64, shape (vertex,)
        Receive, by vertex, the edge in the gap before it; ``ABSENT`` where a tree begins.
    """
    component, head, tail, following = work[0], work[1], work[2], work[3]
    vertices = arrangement.shape[0]
    for vertex in range(vertices):
        component[vertex] = vertex
        head[vertex] = vertex
        tail[vertex] = vertex
        following[vertex] = -1
        gap_keys[vertex] = ABSENT
        gap_ties[vertex] = ABSENT
    for position in order:
        a = find_root(component, first[position])
        b = find_root(component, second[position])
        if a != b:
            start = head[b]
            following[tail[a]] = start
            gap_keys[start] = keys[position]
            gap_ties[start] = ties[position]
            tail[a] = tail[b]
            component[b] = a
    place = 0
    for root in range(vertices):
        if component[root] == root:
            vertex = head[root]
            while vertex >= 0:
                arrangement[place] = vertex
                place += 1
                vertex = following[vertex]


@kernel
def tile_floors(
    arrangement: NDArray[np.int32],
    gap_keys: NDArray[np.int32],
    gap_ties: NDArray[np.int64],
    bounds: tuple[int, int, int, int],
    roots: int,
    work: NDArray[np.int64],
    floor_keys: NDArray[np.int32],
    floor_ties: NDArray[np.int64],
) -> None:
    """Bound the weakest edge on the forest's path between the vertices of a tile from below, by one edge per vertex.

    The path from i to j runs no lower than those from i to a root and from the root to j, whatever vertex the root is:
    ``weakest(i, j) >= min(floor[i], floor[j])`` with ``floor[v] = weakest(v, root)``. An edge that is lighter than
    this closes a cycle of heavier ones. The root is the best of a few: the one whose floors are highest in sum.

    Parameters
    ----------
    arrangement, gap_keys, gap_ties
        As `arrange_forest` writes them.
    bounds : four ints
        The tile is made of the vertices from the first to before the second, and from the third to before the fourth.
    roots : int
        How many vertices are tried as root.
    work : int64, shape (3, vertices of the tile)
        Work space.
    floor_keys : int32, shape (vertex,)
    floor_ties : int64, shape (vertex,)
        Receive the floors of the tile's vertices, ``ABSENT`` without a path; others stay as they are.
    """
    members, keys, ties = work[0], work[1], work[2]
    count = 0
    lowest = np.int64(LARGEST)
    lowest_tie = np.int64(ABSENT)
    for vertex in arrangement:
        key = np.int64(gap_keys[vertex])
        if key < lowest or (key == lowest and gap_ties[vertex] > lowest_tie):
            lowest = key
            lowest_tie = gap_ties[vertex]
        if bounds[0] <= vertex < bounds[1] or bounds[2] <= vertex < bounds[3]:
            members[count] = vertex
            keys[count] = lowest
            ties[count] = lowest_tie
            count += 1
            lowest = np.int64(LARGEST)
            lowest_tie = np.int64(ABSENT)
    best = np.int64(-count - 1)
    root = 0
    tried = min(roots, count)
    for index in range(tried):
        start = (2 * index + 1) * count // (2 * tried)
        total = np.int64(0)
        lowest = np.int64(LARGEST)
        for place in range(start + 1, count):
            lowest = min(lowest, keys[place])
            total += lowest
        lowest = np.int64(LARGEST)
        for place in range(start, 0, -1):
            lowest = min(lowest, keys[place])
            total += lowest
        if total > best:
            best = total
            root = start
    floor_keys[members[root]] = LARGEST
    floor_ties[members[root]] = ABSENT
    lowest = np.int64(LARGEST)
    lowest_tie = np.int64(ABSENT)
    for place in range(root + 1, count):
        if keys[place] < lowest or (keys[place] == lowest and ties[place] > lowest_tie):
            lowest = keys[place]
            lowest_tie = ties[place]
        floor_keys[members[place]] = lowest
        floor_ties[members[place]] = lowest_tie
    lowest = np.int64(LARGEST)
    lowest_tie = np.int64(ABSENT)
    for place in range(root, 0, -1):
        if keys[place] < lowest or (keys[place] == lowest and ties[place] > lowest_tie):
            lowest = keys[place]
            lowest_tie = ties[place]
        floor_keys[members[place - 1]] = lowest
        floor_ties[members[place - 1]] = lowest_tie

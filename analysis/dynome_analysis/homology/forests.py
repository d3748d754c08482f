"""Maximum spanning forests as edge lists: the associative reduction behind streaming. Numbers only.

``MSF(A and B) = MSF(MSF(A) and MSF(B))``: an edge that is the lightest of some cycle of A stays so in whatever is
added.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynome_analysis.kernels.forests import LARGEST, arrange_forest, keep_forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Arrangement", "EdgeList", "GrowingForest", "edge_ties", "spanning_forest"]


class EdgeList(NamedTuple):
    """Edges of a graph: bit patterns of their float32 weights, and their ends; int32, all of shape (edge,)."""

    keys: NDArray[np.int32]
    first: NDArray[np.int32]
    second: NDArray[np.int32]

    @classmethod
    def joined(cls, *parts: EdgeList) -> EdgeList:
        """Return the edges of all parts."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts)))

    def take(self, positions: NDArray[np.int64]) -> EdgeList:
        """Return the edges at these positions."""
        return EdgeList(*(column[positions] for column in self))


class Arrangement(NamedTuple):
    """Vertices in a row, with the edge in the gap before each; see `arrange_forest`."""

    vertices: NDArray[np.int32]
    gap_keys: NDArray[np.int32]
    gap_ties: NDArray[np.int64]


def spanning_forest(edges: EdgeList, vertices: int, ties: NDArray[np.int64] | None = None) -> EdgeList:
    """Return a maximum spanning forest of a graph, heaviest edge first.

    Parameters
    ----------
    edges : EdgeList
        Of vertices 0 to ``vertices - 1``.
    vertices : int
    ties : int64, shape (edge,), optional
        Of edges of equal weight the one with the smaller tie counts as the heavier: the forest is unique then. Else it
        is one of those with the same, unique, weights.

    Notes
    -----
    Kruskal: O(edge log edge) time, 40 bytes per edge.
    """
    kept = np.empty(vertices, np.int64)
    count = keep_forest(
        edges.first, edges.second, _heaviest_first(edges.keys, ties), np.empty(vertices, np.int32), kept
    )
    return edges.take(kept[:count])


def edge_ties(edges: EdgeList, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ties of edges whose vertices are called ``labels`` (vertex,): by smaller label, then by larger."""
    first, second = labels[edges.first], labels[edges.second]
    ties: NDArray[np.int64] = (np.minimum(first, second) << 32) | np.maximum(first, second)
    return ties


class GrowingForest:
    """The maximum spanning forest of all edges that threads have brought so far.

    Parameters
    ----------
    labels : int64, shape (vertex,)
        Names of the vertices, for ties.
    unique : bool
        Break ties by label, see `spanning_forest`.
    hints : EdgeList
        Edges with *less* than the weight that they will be brought with. They never enter the forest, but what is
        lighter than a path of them is not needed: they make floors worth something before much has been brought.

    Attributes
    ----------
    edges : EdgeList
        The forest, heaviest edge first.
    arrangement : Arrangement
        Of forest and hints. Replaced as a whole, never changed: read it once and use that.
    """

    def __init__(self, labels: NDArray[np.int64], *, unique: bool, hints: EdgeList) -> None:
        nothing = np.empty(0, np.int32)
        self.labels = labels
        self.unique = unique
        self.hints = hints
        self.lock = Lock()
        self.edges = EdgeList(nothing, nothing, nothing)
        self.arrangement = self._arranged()

    def bring(self, edges: EdgeList) -> None:
        """Add edges, each of which is brought once; safe to call from several threads."""
        with self.lock:
            together = EdgeList.joined(self.edges, edges)
            ties = edge_ties(together, self.labels) if self.unique else None
            self.edges = spanning_forest(together, self.labels.size, ties)
            self.arrangement = self._arranged()

    def _arranged(self) -> Arrangement:
        vertices = self.labels.size
        together = EdgeList.joined(self.edges, self.hints)
        # A hint is lighter than the edge that it stands for: what weighs as much is not needed, whatever its tie.
        ties = np.full(together.keys.size, -1, np.int64)
        if self.unique:
            ties[: self.edges.keys.size] = edge_ties(self.edges, self.labels)
        arrangement = Arrangement(
            np.empty(vertices, np.int32), np.empty(vertices, np.int32), np.empty(vertices, np.int64)
        )
        order = _heaviest_first(together.keys, ties if self.unique else None)
        arrange_forest(*together, ties, order, np.empty((4, vertices), np.int32), *arrangement)
        return arrangement


def _heaviest_first(keys: NDArray[np.int32], ties: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if ties is not None:
        order: NDArray[np.int64] = np.lexsort((ties, -keys))
        return order
    # One sort of integers instead of an indirect one; numpy sorts 64-bit integers by vector instructions.
    packed = (LARGEST - keys).astype(np.uint64) << np.uint64(32)
    packed |= np.arange(keys.size, dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)

"""Weighted degree's companion: eigenvector centrality, by Lanczos on products with the adjacency matrix.

A layered graph without shortcuts is bipartite, so minus the largest eigenvalue is an eigenvalue too and power iteration
oscillates for ever. Lanczos for the largest *algebraic* eigenvalue does not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RESIDUAL", "EigenvectorCentrality", "WeightedGraph", "eigenvector_centrality"]

RESIDUAL = 1e-6
DENSE_LIMIT = 32  # up to here a dense solver is faster than Lanczos can start, and it has no minimum size
BASIS_SIZES = (20, 80, 320)


class WeightedGraph(Protocol):
    """What signatures need of an undirected graph with finite weights that are not negative."""

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""

    @property
    def n_edges(self) -> int:
        """Number of edges."""

    def degree(self) -> NDArray[np.float64]:
        """Return the sum of each vertex's edge weights."""

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the adjacency matrix times a vector."""

    def components(self) -> NDArray[np.int32]:
        """Return the number of each vertex's connected component."""


@dataclass(frozen=True)
class EigenvectorCentrality:
    """The leading eigenvector of a graph's largest connected component.

    Attributes
    ----------
    values
        float64, shape (vertex,); not negative, Euclidean norm 1, 0 outside the component.
    eigenvalue
        The largest eigenvalue of the component.
    residual
        ``||A x - eigenvalue * x|| / eigenvalue``, at most `RESIDUAL`.
    outside
        Number of vertices outside the component.
    components
        Number of connected components; an isolated vertex is one.
    """

    values: NDArray[np.float64]
    eigenvalue: float
    residual: float
    outside: int
    components: int


def eigenvector_centrality(graph: WeightedGraph) -> EigenvectorCentrality:
    """Solve ``A x = lambda_1 x``, ``x >= 0``, ``||x||_2 = 1`` on the largest connected component.

    Parameters
    ----------
    graph : WeightedGraph
        Weights finite and not negative; edges of weight zero connect nothing.

    Returns
    -------
    EigenvectorCentrality
        The same for the same graph, to rounding: the start vector is the weighted degree.

    Raises
    ------
    InvalidDataError
        No edge has a weight, or the residual stays above `RESIDUAL`.

    Notes
    -----
    Bonacich, *Factoring and weighting approaches to status scores and clique identification*, 1972; as in
    Vahedian et al., arXiv 2111.05410 [P]. With disconnected parts the leading vector is not unique: the component with
    the most vertices is used (the one with the lowest vertex among equals), the rest is 0 and counted [O]. Entries
    below 0 by rounding are set to 0. Cost: one connected-components pass and some 20 to 100 products with the graph;
    20 vectors of memory, more only where the gap behind lambda_1 is tiny.
    """
    labels = graph.components()
    sizes = np.bincount(labels)
    first = np.full(len(sizes), graph.n_vertices)
    np.minimum.at(first, labels, np.arange(graph.n_vertices))
    largest = min(np.flatnonzero(sizes == sizes.max()), key=lambda label: int(first[label]))
    members = np.flatnonzero(labels == largest)
    if len(members) < 2:
        raise InvalidDataError(
            "the weight graph has no edge of non-zero weight, so eigenvector centrality is not defined"
        )
    restricted = _Restriction(graph, members)
    if len(members) <= DENSE_LIMIT:
        eigenvalue, vector = restricted.solve_densely()
        residual = restricted.residual(eigenvalue, vector)
    else:
        for basis in BASIS_SIZES:
            eigenvalue, vector = restricted.solve_by_lanczos(min(basis, len(members)))
            residual = restricted.residual(eigenvalue, vector)
            if residual <= RESIDUAL:
                break
    if not residual <= RESIDUAL:
        raise InvalidDataError(
            f"eigenvector centrality did not converge on {len(members)} vertices (relative residual {residual:.1e},"
            f" wanted {RESIDUAL:.0e}): the graph's two largest eigenvalues are nearly equal"
        )
    values = np.zeros(graph.n_vertices)
    values[members] = vector
    return EigenvectorCentrality(
        values, eigenvalue, residual, outside=graph.n_vertices - len(members), components=len(sizes)
    )


class _Restriction:
    """The adjacency matrix of one component, divided by its largest degree so that tiny or huge weights do no harm."""

    def __init__(self, graph: WeightedGraph, members: NDArray[np.intp]) -> None:
        self.graph = graph
        self.members = members
        self.start = graph.degree()[members]
        self.scale = float(self.start.max())

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.zeros(self.graph.n_vertices)
        full[self.members] = x.ravel()
        product: NDArray[np.float64] = self.graph.multiply(full)[self.members] / self.scale
        return product

    def solve_densely(self) -> tuple[float, NDArray[np.float64]]:
        matrix = np.stack([self.multiply(column) for column in np.eye(len(self.members))])
        values, vectors = np.linalg.eigh(matrix)
        return self.finish(float(values[-1]), vectors[:, -1])

    def solve_by_lanczos(self, basis: int) -> tuple[float, NDArray[np.float64]]:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        size = len(self.members)
        operator = LinearOperator((size, size), matvec=self.multiply, rmatvec=self.multiply, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=1, which="LA", v0=self.start, ncv=basis, maxiter=2000)
        except ArpackNoConvergence:
            return 0.0, self.start
        return self.finish(float(values[0]), vectors[:, 0])

    def finish(self, eigenvalue: float, vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        positive = np.maximum(vector if vector.sum() > 0 else -vector, 0.0)
        return eigenvalue * self.scale, positive / np.linalg.norm(positive)

    def residual(self, eigenvalue: float, vector: NDArray[np.float64]) -> float:
        if eigenvalue <= 0:
            return float("inf")
        scaled = eigenvalue / self.scale
        return float(np.linalg.norm(self.multiply(vector) - scaled * vector)) / scaled

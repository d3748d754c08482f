"""Weighted degree's companion: eigenvector centrality, by Lanczos on products with the adjacency matrix.

One solver for every kind of graph: connectomes, layered graphs, unrolled convolutions.

A layered graph without shortcuts is bipartite, so minus the largest eigenvalue is an eigenvalue too and power iteration
oscillates for ever. Lanczos for the largest *algebraic* eigenvalue does not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RESIDUAL", "EigenvectorCentrality", "WeightedGraph", "eigenvector_centrality"]

RESIDUAL = 1e-6
BASIS = 24  # vectors of the search space; then it is restarted with its leading ones
KEPT = 8
PRODUCTS = 120  # with the graph, before the search is left to ARPACK with larger spaces
BASIS_SIZES = (80, 320)
# Rounding in the products must not lift a residual that was just below the limit above it.
MARGIN = 0.8


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
        ``||A x - eigenvalue * x|| / eigenvalue``, at most the tolerance asked for.
    products
        How many products with the graph it took, the weighted degree not counted.
    outside
        Number of vertices outside the component.
    components
        Number of connected components; an isolated vertex is one.
    """

    values: NDArray[np.float64]
    eigenvalue: float
    residual: float
    products: int
    outside: int
    components: int


def eigenvector_centrality(
    graph: WeightedGraph, *, start: NDArray[np.floating[Any]] | None = None, tolerance: float = RESIDUAL
) -> EigenvectorCentrality:
    """Solve ``A x = lambda_1 x``, ``x >= 0``, ``||x||_2 = 1`` on the largest connected component.

    Parameters
    ----------
    graph : WeightedGraph
        Weights finite and not negative; edges of weight zero connect nothing.
    start : floating, shape (vertex,), optional
        A vector near the result, as the centrality of a similar graph: fewer products, the same result within the
        tolerance. One of another length is an error; NaN or all zero is as none.
    tolerance : float, default 1e-6
        Relative residual to reach. A `DenseGraph` multiplies in float32 and cannot reach much below 1e-7.

    Returns
    -------
    EigenvectorCentrality
        The same for the same input, to rounding.

    Raises
    ------
    InvalidArgumentError
        ``start`` has another length than the graph has vertices.
    InvalidDataError
        No edge has a weight, or the residual stays above ``tolerance``.

    Notes
    -----
    Bonacich, *Factoring and weighting approaches to status scores and clique identification*, 1972; as in
    Vahedian et al., arXiv 2111.05410 [P]. With disconnected parts the leading vector is not unique: the component with
    the most vertices is used (the one with the lowest vertex among equals), the rest is 0 and counted [O]. Entries
    below 0 by rounding are set to 0.

    Lanczos with full orthogonalisation and a Rayleigh-Ritz step after every product, so that it ends as soon as the
    residual is small: ARPACK builds 20 vectors before it looks. The first vector is constant, because its product, the
    weighted degree, is known. Restarted at `BASIS` vectors (thick restart: Wu and Simon, SIAM J. Matrix Anal. 22,
    2000). Cost: one connected-components pass and 3 to 10 products on connectomes, 10 to 25 on layered graphs, up to
    some hundreds where the gap behind lambda_1 is tiny; 2 * `BASIS` vectors of memory, more only then.
    """
    labels = graph.components()
    sizes = np.bincount(labels)
    largest = 0
    if len(sizes) > 1:
        first = np.empty(len(sizes), np.intp)
        first[labels[::-1]] = np.arange(graph.n_vertices)[::-1]
        largest = min(np.flatnonzero(sizes == sizes.max()), key=lambda label: int(first[label]))
    if sizes[largest] < 2:
        raise InvalidDataError(
            "the weight graph has no edge of non-zero weight, so eigenvector centrality is not defined"
        )
    part = _Part(graph, np.flatnonzero(labels == largest))
    guess = _check_start(start, graph.n_vertices)
    eigenvalue, vector, residual = part.search(None if guess is None else guess[part.members], tolerance)
    for basis in BASIS_SIZES:
        if residual <= tolerance:
            break
        eigenvalue, vector, residual = part.solve_by_arpack(min(basis, part.size), tolerance)
    if not residual <= tolerance:
        raise InvalidDataError(
            f"eigenvector centrality did not converge on {part.size} vertices (relative residual {residual:.1e},"
            f" wanted {tolerance:.0e}): the graph's two largest eigenvalues are nearly equal"
        )
    values = np.zeros(graph.n_vertices)
    values[part.members] = vector
    return EigenvectorCentrality(
        values,
        eigenvalue * part.scale,
        residual,
        part.products,
        outside=graph.n_vertices - part.size,
        components=len(sizes),
    )


def _check_start(start: NDArray[np.floating[Any]] | None, n_vertices: int) -> NDArray[np.float64] | None:
    """Return a usable start vector, or nothing."""
    if start is None:
        return None
    vector = np.asarray(start, dtype=np.float64)
    if vector.shape != (n_vertices,):
        raise InvalidArgumentError(
            f"start must have one value for each of the {n_vertices} vertices; got shape {vector.shape}"
        )
    return vector if np.isfinite(vector).all() else None


class _Part:
    """The adjacency matrix of one component, divided by its largest degree so that tiny or huge weights do no harm."""

    def __init__(self, graph: WeightedGraph, members: NDArray[np.intp]) -> None:
        self.graph = graph
        self.members = members
        self.size = len(members)
        self.whole = self.size == graph.n_vertices
        degree = graph.degree()
        self.degree = degree if self.whole else degree[members]
        self.scale = float(self.degree.max())
        self.products = 0

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self.products += 1
        full = x
        if not self.whole:
            full = np.zeros(self.graph.n_vertices)
            full[self.members] = x
        product = self.graph.multiply(full)
        return (product if self.whole else product[self.members]) / self.scale

    def search(self, start: NDArray[np.float64] | None, tolerance: float) -> tuple[float, NDArray[np.float64], float]:
        """Return eigenvalue (of the scaled matrix), vector and relative residual; the last may be too large."""
        space = _SearchSpace(min(BASIS, self.size), self.size)
        even = np.full(self.size, self.size**-0.5)
        space.add(even, self.degree * (self.size**-0.5 / self.scale))
        fresh = None if start is None else space.orthogonalise(start)
        while True:
            if fresh is not None:
                space.add(fresh, self.multiply(fresh))
            eigenvalue, vector, product = space.leading()
            difference = product - eigenvalue * vector
            residual = _norm(difference) / eigenvalue
            if residual <= MARGIN * tolerance:
                eigenvalue, vector, residual = self.make_positive(eigenvalue, vector, residual, tolerance)
                if residual <= tolerance:
                    break
            fresh = space.orthogonalise(difference)
            if fresh is None or space.count == self.size or self.products >= PRODUCTS:
                break
        return eigenvalue, vector, residual

    def make_positive(
        self, eigenvalue: float, vector: NDArray[np.float64], residual: float, tolerance: float
    ) -> tuple[float, NDArray[np.float64], float]:
        """Set entries below 0 to 0; the residual is measured again where that might have lifted it above the limit."""
        positive = np.maximum(vector, 0.0)
        norm = _norm(positive)
        cut = _norm(vector - positive)
        positive /= norm
        # ||A|| = lambda_1 on a connected component, so what is cut off adds at most twice its norm.
        if residual + 2 * cut > MARGIN * tolerance:
            product = self.multiply(positive)
            eigenvalue = float(positive @ product)
            residual = _norm(product - eigenvalue * positive) / eigenvalue
        else:
            residual += 2 * cut
        return eigenvalue, positive, residual

    def solve_by_arpack(self, basis: int, tolerance: float) -> tuple[float, NDArray[np.float64], float]:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        operator = LinearOperator((self.size, self.size), matvec=self.multiply, rmatvec=self.multiply, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=1, which="LA", v0=self.degree / self.scale, ncv=basis, maxiter=2000)
        except ArpackNoConvergence:
            return 0.0, self.degree, float("inf")
        vector = vectors[:, 0] * (1 if vectors[:, 0].sum() > 0 else -1)
        return self.make_positive(float(values[0]), vector, float("inf"), tolerance)


def _norm(x: NDArray[np.float64]) -> float:
    """Return the Euclidean norm of a vector of moderate size; numpy's own takes longer than a short vector's sum."""
    return sqrt(float(x @ x))


class _SearchSpace:
    """Orthonormal vectors, their products with a symmetric matrix, and the Rayleigh-Ritz step on them."""

    def __init__(self, capacity: int, size: int) -> None:
        self.count = 0
        self.vectors = np.empty((capacity, size))
        self.products = np.empty((capacity, size))
        self.projected = np.empty((capacity, capacity))

    def orthogonalise(self, direction: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the part of ``direction`` outside the space, of norm 1, or nothing where it lies within."""
        basis = self.vectors[: self.count]
        norm = _norm(direction)
        if norm == 0.0:
            return None
        fresh = direction / norm
        for _ in range(2):  # twice is enough (Kahan; Parlett), and once where little is taken away, as of a residual
            fresh = fresh - (basis @ fresh) @ basis
            left = _norm(fresh)
            if left < 1e-12:
                return None
            fresh /= left
            if left > 0.7:
                break
        return fresh

    def add(self, vector: NDArray[np.float64], product: NDArray[np.float64]) -> None:
        if self.count == len(self.vectors):
            self.restart()
        here = self.count
        self.vectors[here], self.products[here] = vector, product
        self.count += 1
        row = self.vectors[: self.count] @ product
        self.projected[here, : self.count] = self.projected[: self.count, here] = row

    def leading(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Return the largest Ritz value, its vector with a sum that is not negative, and the vector's product."""
        values, small = np.linalg.eigh(self.projected[: self.count, : self.count])
        weights = small[:, -1]
        vector = weights @ self.vectors[: self.count]
        if vector.sum() < 0:
            vector, weights = -vector, -weights
        return float(values[-1]), vector, weights @ self.products[: self.count]

    def restart(self) -> None:
        """Keep the leading Ritz vectors."""
        values, small = np.linalg.eigh(self.projected)
        keep = min(KEPT, self.count - 1)
        weights = small[:, -keep:].T
        self.vectors[:keep], self.products[:keep] = weights @ self.vectors, weights @ self.products
        self.projected[:keep, :keep] = np.diag(values[-keep:])
        self.count = keep

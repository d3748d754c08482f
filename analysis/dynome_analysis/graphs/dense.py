"""A dense connectome as a weighted graph: strength and eigenvector centrality without a copy of the matrix.

Every product reads half the matrix once, in float32, and sums in float64 between tiles. So a residual of 1e-6 is true
although no float64 copy exists.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import frexp
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.graphs.centrality import EigenvectorCentrality, eigenvector_centrality
from dynome_analysis.homology.births import check_connectome
from dynome_analysis.kernels.symmetric_product import LANES, SPAN, label_parts, multiply_symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DenseGraph", "dense_centrality", "dense_graph"]

# The partial sums are always those of as many shares, so that the result does not depend on the number of threads.
SHARES = 4
SHARED_FROM = 2048  # units; below, starting a thread costs more than it saves


@dataclass(frozen=True)
class DenseGraph:
    """The complete graph over the units of a connectome.

    Attributes
    ----------
    weights
        float32, shape (unit, unit), symmetric, finite, not negative. The diagonal is not used.
    threads
        How many threads share one product.
    """

    weights: NDArray[np.float32]
    threads: int = 1

    @property
    def n_vertices(self) -> int:
        """Number of vertices, dead units included."""
        return len(self.weights)

    @property
    def n_edges(self) -> int:
        """Number of pairs of units; those of weight zero count."""
        return self.n_vertices * (self.n_vertices - 1) // 2

    def degree(self) -> NDArray[np.float64]:
        """Return the strength, the sum of a unit's edge weights; float64, shape (unit,). One product, then kept."""
        return self._strength.copy()

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the matrix times ``x``, which is rounded to float32; float64, shape (unit,). O(unit^2), half read."""
        largest = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
        # By a power of two, so that no product of a tiny weight and a tiny entry falls below float32's smallest number.
        factor = 2.0 ** min(max(-frexp(largest)[1] - self._exponent, -100), 100)
        product = self._multiply((x * factor).astype(np.float32))
        product /= factor
        return product

    def components(self) -> NDArray[np.int32]:
        """Label the connected parts, edges of weight zero being none; int32, shape (unit,), numbered from 0.

        O(unit) time where some unit is connected with nearly all, as in a dense connectome; at most O(unit^2).
        """
        labels = np.empty(self.n_vertices, np.int32)
        label_parts(self.weights, labels, np.empty(2 * self.n_vertices, np.int64))
        return labels

    @cached_property
    def _strength(self) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            strength = self._multiply(np.ones(self.n_vertices, np.float32))
        if not np.isfinite(strength).all():  # a sum within a tile went beyond float32; float64 holds it
            tiny = np.float32(2.0**-64)
            strength = self._multiply(np.full(self.n_vertices, tiny)) / tiny.astype(np.float64)
        return strength

    @cached_property
    def _exponent(self) -> int:
        """Power of two of the mean weight of the strongest unit."""
        return frexp(float(self._strength.max(initial=0.0)) / self.n_vertices)[1]

    def _multiply(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        shares = SHARES if self.n_vertices >= SHARED_FROM else 1
        sums = np.zeros((shares, self.n_vertices))

        def work(share: int) -> None:
            columns, lanes = np.empty(SPAN, np.float32), np.empty(4 * LANES, np.float32)
            multiply_symmetric(self.weights, x, share, shares, sums[share], columns, lanes)

        if min(self.threads, shares) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(work, range(shares)))
        else:
            for share in range(shares):
                work(share)
        total: NDArray[np.float64] = sums.sum(axis=0) if shares > 1 else sums[0]
        return total


def dense_graph(connectome: NDArray[np.floating[Any]], *, check: bool = True, threads: int = 1) -> DenseGraph:
    """Take a connectome as a weighted graph.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, finite, not negative; the diagonal is not used. A view is kept where it is C-ordered float32.
    check : bool, default True
        False skips the look at every entry, for what `correlate` has just made.
    threads : int, default 1
        How many threads share one product.

    Returns
    -------
    DenseGraph

    Raises
    ------
    InvalidArgumentError
        Not a square matrix, or not symmetric.
    InvalidDataError
        A weight is negative, NaN or infinite.
    """
    return DenseGraph(check_connectome(connectome, check=check), threads)


def dense_centrality(
    connectome: NDArray[np.floating[Any]],
    *,
    start: NDArray[np.floating[Any]] | None = None,
    check: bool = True,
    threads: int = 1,
) -> tuple[NDArray[np.float64], EigenvectorCentrality]:
    """Return strength and eigenvector centrality of a connectome.

    Parameters
    ----------
    connectome, check, threads
        As for `dense_graph`.
    start : floating, shape (unit,), optional
        A vector near the result, as the centrality one snapshot earlier: fewer products, the same result within the
        residual.

    Returns
    -------
    strength : float64, shape (unit,)
        ``s_i = sum_j C_ij``, the weighted degree; 0 for a dead unit.
    centrality : EigenvectorCentrality
        Relative residual at most 1e-6. Dead units, and all others outside the largest connected part, have 0.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `dense_graph`; and where all weights are zero or the residual stays above 1e-6.

    Notes
    -----
    METHODS.md section 6. The strength is the product with a vector of ones, the first step of the iteration (see
    `eigenvector_centrality`): 4 to 10 products in all on connectomes with and without clusters, each O(unit^2) and
    reading half the matrix. Memory: 16 bytes per unit and product beyond the connectome.
    """
    graph = dense_graph(connectome, check=check, threads=threads)
    return graph.degree(), eigenvector_centrality(graph, start=start)

"""Persistent graph homology of one connectome: births of components and deaths of cycles. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.kernels.multiset import pack_upper_triangle, subtract_sorted_multiset
from dynome_analysis.kernels.spanning_tree import BLOCK, maximum_spanning_tree_weights
from dynome_analysis.kernels.symmetry import TILE, is_symmetric
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["births", "births_and_deaths", "check_connectome", "number_of_deaths"]

INFINITY_BITS = np.int32(0x7F800000)


def births(connectome: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the births of components: the weights of the maximum spanning tree, ascending.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite; the diagonal is not read. float64 is rounded to float32.

    Returns
    -------
    float32, shape (unit - 1,)
        Ascending. ``1 - births`` are the deaths of H0 in the Rips filtration on ``1 - connectome``.

    Raises
    ------
    InvalidArgumentError
        Not a square matrix, or not symmetric.
    InvalidDataError
        A weight is negative, NaN or infinite.

    Notes
    -----
    Keep the edges heavier than eps while eps grows: components are born at the edges of the maximum spanning tree
    (Songdechakraiwut, Krause, Banks, Nourski, Van Veen, *Fast topological clustering with Wasserstein distance*, ICLR
    2022, section 2 [G]; METHODS.md section 2). O(unit^2) time, 12 bytes per unit beyond the input.
    """
    return _spanning_weights(check_connectome(connectome))


def births_and_deaths(connectome: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return births and deaths of a connectome: every edge weight is one or the other.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        As for `births`.

    Returns
    -------
    births : float32, shape (unit - 1,)
        Weights of the maximum spanning tree, ascending.
    deaths : float32, shape (1 + unit * (unit - 3) / 2,)
        All remaining weights, ascending, edges of weight 0 included.

    Raises
    ------
    InvalidArgumentError
        Not a square matrix, or not symmetric.
    InvalidDataError
        A weight is negative, NaN or infinite.

    Notes
    -----
    Cycles die at the edges outside the maximum spanning tree (ICLR 2022, section 2 [G]). With tied weights the tree is
    not unique but its weights are, so the multisets are exact. O(unit^2 log unit) time, one float32 copy of all edges
    beside the deaths.
    """
    matrix = check_connectome(connectome)
    units = matrix.shape[0]
    born = _spanning_weights(matrix)
    edges = np.empty(units * (units - 1) // 2, np.float32)
    pack_upper_triangle(matrix, edges)
    edges.sort()
    died = np.empty(number_of_deaths(units), np.float32)
    found = subtract_sorted_multiset(edges, born, died)
    assert found == born.size, "a birth is not among the edges"
    return born, died


def number_of_deaths(units: int) -> int:
    """Return how many cycles a complete graph of ``units`` vertices has: ``1 + n (n - 3) / 2``."""
    return 1 + units * (units - 3) // 2


def check_connectome(connectome: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return a connectome as C-ordered float32 without negative zeros, a view where possible, or say what is wrong."""
    matrix = np.asarray(connectome)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0 or matrix.dtype.kind != "f":
        raise InvalidArgumentError(
            "a connectome must be a square floating matrix (unit, unit) with at least one unit; "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )
    weights = np.ascontiguousarray(matrix, dtype=np.float32)
    # Read as integers, negative values (and -0.0) lie below 0, infinity and NaN at or above the pattern of infinity.
    if weights.view(np.int32).min() < 0:
        if weights.min() < 0:
            raise InvalidDataError("a connectome must not hold negative weights: take absolute values first")
        weights = np.abs(weights)
    if weights.view(np.int32).max() >= INFINITY_BITS:
        raise InvalidDataError("a connectome must be finite; it holds NaN or infinity")
    if not is_symmetric(weights, np.empty((TILE, TILE), np.float32)):
        raise InvalidArgumentError("a connectome must be exactly symmetric: use (connectome + connectome.T) / 2")
    return weights


def _spanning_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    units = weights.shape[0]
    padded = -(-units // BLOCK) * BLOCK
    found = np.empty(units - 1, np.int32)
    maximum_spanning_tree_weights(weights.view(np.int32), np.empty(padded, np.int32), np.empty(padded, np.int32), found)
    found.sort()
    return found.view(np.float32)

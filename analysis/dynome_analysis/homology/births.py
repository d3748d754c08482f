"""Persistent graph homology of one connectome: births of components and deaths of cycles. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology.sorting import Sort, sort_weights
from dynome_analysis.kernels.multiset import subtract_sorted_multiset
from dynome_analysis.kernels.spanning_tree import maximum_spanning_tree_edges, maximum_spanning_tree_weights
from dynome_analysis.kernels.triangle import compare_triangles, pack_upper_triangle
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["births", "births_and_deaths", "check_connectome", "number_of_deaths", "spanning_tree"]

INFINITY_BITS = 0x7F800000


def births(connectome: NDArray[np.floating[Any]], *, check: bool = True) -> NDArray[np.float32]:
    """Return the births of components: the weights of the maximum spanning tree, ascending.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite; the diagonal is not read. float64 is rounded to float32.
    check : bool
        False leaves out the check of symmetry and of every weight, for a matrix that `correlate` has just made. What
        comes of any other matrix is then undefined, though nothing is read or written out of bounds.

    Returns
    -------
    float32, shape (unit - 1,)
        Ascending. ``1 - births`` are the deaths of H0 in the Rips filtration on ``1 - connectome``.

    Raises
    ------
    InvalidArgumentError
        Not a square floating matrix, or not symmetric.
    InvalidDataError
        A weight is negative, NaN or infinite.

    Notes
    -----
    Keep the edges heavier than eps while eps grows: components are born at the edges of the maximum spanning tree
    (Songdechakraiwut, Krause, Banks, Nourski, Van Veen, *Fast topological clustering with Wasserstein distance*, ICLR
    2022, section 2 [G]; METHODS.md section 2). O(unit^2) time: one read of the matrix, one more for the check; 8 bytes
    per unit beyond the input, and a copy of it where it is not C-ordered float32.
    """
    return _spanning_weights(check_connectome(connectome, check=check))


def births_and_deaths(
    connectome: NDArray[np.floating[Any]], *, check: bool = True, sort: Sort = "auto"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return births and deaths of a connectome: every edge weight is one or the other.

    Parameters
    ----------
    connectome, check
        As for `births`.
    sort : {"auto", "numpy", "radix"}
        How the edges are sorted; "auto" takes what is faster on this machine, see `sort_weights`.

    Returns
    -------
    births : float32, shape (unit - 1,)
        Weights of the maximum spanning tree, ascending.
    deaths : float32, shape (1 + unit * (unit - 3) / 2,)
        All remaining weights, ascending, edges of weight 0 included.

    Raises
    ------
    InvalidArgumentError
        Not a square floating matrix, not symmetric, or another ``sort``.
    InvalidDataError
        A weight is negative, NaN or infinite.

    Notes
    -----
    Cycles die at the edges outside the maximum spanning tree (ICLR 2022, section 2 [G]). With tied weights the tree is
    not unique but its weights are, so the multisets are exact. O(unit^2 log unit) time. Memory: ``2 unit^2`` bytes for
    the deaths, which are sorted and thinned where they lie; as much again with "radix".
    """
    weights = check_connectome(connectome, check=check)
    units = weights.shape[0]
    born = _spanning_weights(weights)
    edges = np.empty(units * (units - 1) // 2, np.float32)
    pack_upper_triangle(weights, edges)
    edges = sort_weights(edges, sort=sort)
    if subtract_sorted_multiset(edges, born) != born.size:  # only where nothing was checked
        raise InvalidArgumentError("a birth is not among the edges: a connectome must be exactly symmetric")
    return born, edges[: number_of_deaths(units)]


def spanning_tree(
    connectome: NDArray[np.floating[Any]], *, check: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the maximum spanning tree of a connectome: its births, and between which units each lies.

    Parameters
    ----------
    connectome, check
        As for `births`.

    Returns
    -------
    weights : float32, shape (unit - 1,)
        Ascending: the births.
    edges : int32, shape (unit - 1, 2)
        The edge (i, j), i < j, of each birth.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `births`.

    Notes
    -----
    Births are unique, the tree is not where weights are tied. Here, of two edges of equal weight, the one with the
    smaller (i, j) counts as the heavier [O]: that makes the tree unique, whatever the algorithm, and equal to the one
    of `stream_homology` on equal weights. O(unit^2) time, up to three times that of `births`; 44 bytes per unit.
    """
    weights = check_connectome(connectome, check=check)
    units = weights.shape[0]
    found = np.empty(units - 1, np.int32)
    edges = np.empty((units - 1, 2), np.int32)
    work = np.empty((2, units), np.int32)
    complete = maximum_spanning_tree_edges(weights.view(np.int32), work[0], work[1], found, edges)
    _check_tree(found, complete=complete)
    lightest_first = np.lexsort((-edges[:, 1], -edges[:, 0], found))
    return found[lightest_first].view(np.float32), edges[lightest_first]


def number_of_deaths(units: int) -> int:
    """Return how many cycles a complete graph of ``units`` vertices has: ``1 + n (n - 3) / 2``."""
    return 1 + units * (units - 3) // 2


def check_connectome(connectome: NDArray[np.floating[Any]], *, check: bool = True) -> NDArray[np.float32]:
    """Return a connectome as C-ordered float32 without negative zeros, a view where possible, or say what is wrong.

    The diagonal may hold anything. ``check=False`` looks at shape and dtype only. O(unit^2) time, no memory beyond the
    result; raises as `births`.
    """
    matrix = np.asarray(connectome)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0 or matrix.dtype.kind != "f":
        raise InvalidArgumentError(
            "a connectome must be a square floating matrix (unit, unit) with at least one unit; "
            f"got {matrix.dtype} of shape {matrix.shape}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused below
        weights = np.ascontiguousarray(matrix, dtype=np.float32)
    if check:
        different, largest = compare_triangles(weights.view(np.uint32))
        if different or largest >= INFINITY_BITS:
            return _find_fault(weights)
    return weights


def _find_fault(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Say what is wrong off the diagonal, or return the weights without negative zeros.

    Slow, and hardly ever needed.
    """
    weights = weights.copy()
    np.fill_diagonal(weights, 0)
    if not np.isfinite(weights).all():
        raise InvalidDataError("a connectome must be finite; it holds NaN or infinity")
    if weights.min() < 0:
        raise InvalidDataError("a connectome must not hold negative weights: take absolute values first")
    if not np.array_equal(weights, weights.T):
        raise InvalidArgumentError("a connectome must be exactly symmetric: use (connectome + connectome.T) / 2")
    return np.abs(weights, out=weights)


def _spanning_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    units = weights.shape[0]
    found = np.empty(units - 1, np.int32)
    complete = maximum_spanning_tree_weights(weights.view(np.int32), np.empty(units, np.int32), found)
    _check_tree(found, complete=complete)
    found.sort()
    return found.view(np.float32)


def _check_tree(found: NDArray[np.int32], *, complete: bool) -> None:
    """Refuse a tree with a NaN or an infinity, which only an unchecked matrix can have."""
    if not complete or (found.size and found.max() >= INFINITY_BITS):
        raise InvalidDataError("a connectome must be finite; it holds NaN or infinity")

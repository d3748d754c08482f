"""Distances between persistence diagrams by optimal matching. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["diagram_distance"]


def diagram_distance(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> float:
    """Return the 2-Wasserstein distance between two persistence diagrams, exactly.

    ``W(X, Y) = sqrt( min over matchings of sum |x - y|^2 )``: order 2, and the Euclidean norm between points of the
    (birth, death) plane; a point may instead go to the diagonal, ``|x - diagonal|^2 = (death - birth)^2 / 2``. TOP
    and CG-ALR name a Wasserstein distance between diagrams [P]; order and ground norm are our choice [O], made so
    that on births alone it becomes the closed form of `sorted_distance`. (giotto-tda and persim measure points in
    other norms.)

    Parameters
    ----------
    first, second : floating, shape (point, 2)
        Births and deaths, finite; either may be empty.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        Not of shape (point, 2), or not finite.

    Notes
    -----
    Matching x with y saves ``d(x)^2 + d(y)^2 - |x - y|^2`` over sending both to the diagonal, so the best partial
    matching is a rectangular assignment on ``min(0, -saving)``, solved by scipy: a quarter of the memory of the usual
    square problem with diagonal copies, and exact where Hera's auction is approximate. At most O(point^3) time, 8 bytes
    per pair of points.
    """
    left, right = _check_diagram(first), _check_diagram(second)
    left_to_diagonal = np.square(left[:, 1] - left[:, 0]) / 2
    right_to_diagonal = np.square(right[:, 1] - right[:, 0]) / 2
    cost = np.square(left[:, 0, None] - right[None, :, 0])
    cost += np.square(left[:, 1, None] - right[None, :, 1])
    cost -= left_to_diagonal[:, None]
    cost -= right_to_diagonal[None, :]
    np.minimum(cost, 0.0, out=cost)
    rows, columns = linear_sum_assignment(cost)
    matched = cost[rows, columns] < 0
    rows, columns = rows[matched], columns[matched]
    # Summed anew from the matched pairs: the savings would cancel for close diagrams.
    left_to_diagonal[rows] = 0.0
    right_to_diagonal[columns] = 0.0
    squares = np.square(left[rows] - right[columns]).sum() + left_to_diagonal.sum() + right_to_diagonal.sum()
    return float(np.sqrt(squares))


def _check_diagram(diagram: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    points = np.asarray(diagram, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise InvalidArgumentError(
            f"a diagram must be finite and of shape (point, 2); got shape {points.shape}; leave infinite bars out"
        )
    return points

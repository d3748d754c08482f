"""The bottleneck length of two point sets beside a diagonal. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import KDTree

from dynome_analysis.distance.halfplane import to_diagonal
from dynome_analysis.kernels.bottleneck import least_cover

if TYPE_CHECKING:
    from dynome_analysis.distance.halfplane import GroundNorm, Points

__all__ = ["bottleneck_length"]

# Near points that a point may be matched with at first; four times as many where these do not suffice.
NEIGHBOURS = 16


def bottleneck_length(left: Points, right: Points, ground_norm: GroundNorm) -> float:
    """Return the least eps for which all points can be matched, with each other or the diagonal, within eps.

    Parameters
    ----------
    left, right : float64, shape (row, 2) and (column, 2)
        Either may be empty.
    ground_norm : {1, 2, inf}

    Returns
    -------
    float
        Exactly the length of one pair or of one way to the diagonal.

    Notes
    -----
    Points within eps of the diagonal are free to go there, the others are bound to find a partner. By the theorem of
    Mendelsohn and Dulmage a matching that covers the bound points of both sides exists as soon as one covers those of
    the left and one those of the right, so either side is solved alone, against all points of the other, and no copies
    of the diagonal are needed. O(point) memory per near point that is looked at, 16 at first.
    """
    limits, other_limits = to_diagonal(left, ground_norm), to_diagonal(right, ground_norm)
    # Every point goes at least to its nearest partner or to the diagonal.
    found = max(_nearest(left, right, limits, ground_norm), _nearest(right, left, other_limits, ground_norm))
    for points, others, ways in ((left, right, limits), (right, left, other_limits)):
        bound = ways > found
        if bound.any():
            found = _cover(points[bound], others, ways[bound], found, ground_norm)
    return found


def _nearest(points: Points, others: Points, ways: Points, ground_norm: GroundNorm) -> float:
    if not len(points) or not len(others):
        return float(ways.max(initial=0.0))
    near = KDTree(others).query(points, p=ground_norm)[0]
    return float(np.minimum(ways, near).max())


def _cover(points: Points, others: Points, ways: Points, lowest: float, ground_norm: GroundNorm) -> float:
    """Return the least eps at which all ``points`` farther than eps from the diagonal have partners within eps."""
    rows, columns = len(points), len(others)
    if not columns:
        return max(lowest, float(ways.max()))
    tree = KDTree(others)
    count = min(NEIGHBOURS, columns)
    while True:
        near: Any = tree.query(points, k=range(1, 1 + count), p=ground_norm)
        eps = least_cover(
            near[1].astype(np.int64, copy=False),
            near[0],
            count == columns,
            ways,
            lowest,
            np.full(rows, -1),
            np.full(columns, -1),
            np.empty(rows, np.int64),
            np.empty(rows),
            np.empty(rows, np.int64),
            np.empty(columns, np.int64),
            np.empty(columns, np.int64),
        )
        if eps >= 0:
            return eps
        count = min(4 * count, columns)

"""Optimal matching of two point sets, each point with one of the other set or with the diagonal. Numbers only.

A matching of thousands of points is a sparse problem: in an optimal one, partners are near neighbours, and no farther
from each other than both are from the diagonal. So it is solved on the nearest neighbours; its dual variables then say
which other pairs could still matter, and none is forgotten.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array

from dynome_analysis.distance.halfplane import lengths, nearest_pairs, to_diagonal
from dynome_analysis.kernels.assignment import augment_all, bid_all, find_violations, lower_duals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynome_analysis.distance.halfplane import GroundNorm, Points

__all__ = ["optimal_mates"]

# Near points that become candidates at first: more make the paths slower, fewer need more rounds.
NEIGHBOURS = 12
# Pairs per point that a round of pricing may add.
ADDED = 4
# Points per tile that pricing takes or leaves at once.
TILE = 32
# Bids per row before the paths take over.
BIDS = 5


def optimal_mates(left: Points, right: Points, order: float, ground_norm: GroundNorm) -> NDArray[np.int32]:
    """Return the column of every row in a matching of least ``sum |x - y|^order``, -1 for the diagonal.

    Parameters
    ----------
    left, right : float64, shape (row, 2) and (column, 2)
        At least one point each, none on the diagonal.
    order : float
        Finite, at least 1.
    ground_norm : {1, 2, inf}

    Returns
    -------
    int32, shape (row,)

    Notes
    -----
    Shortest augmenting paths with dual variables (Jonker and Volgenant 1987), where rows and columns alike may end on
    the diagonal, on a growing set of candidate pairs: after each round the pairs whose duals exceed their cost by more
    than 1e-12 of themselves join, until there is none. Then the duals prove the matching optimal among all pairs.
    """
    norm = 0 if math.isinf(ground_norm) else int(ground_norm)
    limits, column_limits = (to_diagonal(points, ground_norm) ** order for points in (left, right))
    rows, columns = nearest_pairs(left, right, NEIGHBOURS, ground_norm)
    costs = lengths(left[rows] - right[columns], ground_norm) ** order
    near = costs < limits[rows] + column_limits[columns]
    rows, columns, costs = rows[near], columns[near], costs[near]
    u, v = limits.copy(), column_limits.copy()
    mates, column_mates = np.full(len(left), -1, np.int32), np.full(len(right), -1, np.int32)
    sequence, firsts, boxes = _tiles(right)
    tiled = np.ascontiguousarray(right[sequence])
    queue = np.empty(len(left), np.int32)
    first_round = True
    while True:
        by_row, by_column = _compressed(rows, columns, costs, len(left)), _compressed(columns, rows, costs, len(right))
        if first_round:
            # Prices start at what the nearest row would pay: close diagrams are matched at once, and duals are as
            # small as the costs, so that nothing cancels.
            lower_duals(*by_column, column_limits, v, np.zeros(len(left)), column_mates, mates)
            first_round = False
        lower_duals(*by_row, limits, u, v, mates, column_mates)
        bid_all(*by_row, limits, u, v, mates, column_mates, queue, BIDS * len(left))
        augment_all(*by_row, limits, u, v, mates, column_mates, *_work_space(len(costs), len(right)))
        augment_all(*by_column, column_limits, v, u, column_mates, mates, *_work_space(len(costs), len(left)))
        prices = v[sequence]
        boxes[:, 4] = np.maximum.reduceat(prices, firsts)
        added = np.empty((len(left), ADDED), np.int32)
        added_costs = np.empty((len(left), ADDED))
        starts, neighbours, _ = by_row
        if not find_violations(
            left, u, tiled, prices, sequence, TILE, boxes, norm, order, starts, neighbours, added, added_costs
        ):
            return mates
        new = added >= 0
        rows = np.concatenate([rows, np.nonzero(new)[0]])
        columns, costs = np.concatenate([columns, added[new]]), np.concatenate([costs, added_costs[new]])


def _compressed(
    rows: NDArray[Any], columns: NDArray[Any], costs: Points, count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], Points]:
    """Return (starts, neighbours, costs) of the edges, row by row."""
    size = int(columns.max(initial=-1)) + 1
    matrix = coo_array((costs, (rows.astype(np.int32), columns.astype(np.int32))), (count, size)).tocsr()
    return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data


def _work_space(edges: int, columns: int) -> tuple[Any, Any, Any, Any, Any, Any]:
    return (
        np.empty(edges),
        np.empty(edges, np.int32),
        np.empty(columns),
        np.zeros(columns, np.int32),
        np.empty(columns, np.int32),
        np.empty(columns, np.int32),
    )


def _tiles(points: Points) -> tuple[NDArray[np.int64], NDArray[np.int64], Points]:
    """Sort points into tiles of near ones: return their sequence, where tiles start, and boxes (tile, 5) around them.

    The last column of the boxes is left to the caller.
    """
    count = len(points)
    tiles = -(-count // TILE)
    slab = TILE * math.isqrt(tiles)
    ranks = np.empty(count, np.int64)
    ranks[np.argsort(points[:, 0])] = np.arange(count)
    sequence = np.lexsort((points[:, 1], ranks // slab))
    firsts = np.arange(0, count, TILE)
    boxes = np.zeros((tiles, 5))
    for axis in (0, 1):
        values = points[sequence, axis]
        boxes[:, 2 * axis] = np.minimum.reduceat(values, firsts)
        boxes[:, 2 * axis + 1] = np.maximum.reduceat(values, firsts)
    return sequence, firsts, boxes

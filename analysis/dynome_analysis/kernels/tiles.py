"""A tile of a correlation matrix, read once: all weights are counted, those that a forest may need are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel
from .forests import ABSENT, edge_tie

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["permute_columns", "scan_tile", "strongest_rows"]

BLOCK = 64
MAGNITUDE = np.int32(0x7FFFFFFF)
ONE = np.int32(0x3F800000)


@kernel
def scan_tile(
    product: NDArray[np.float32],
    patterns: NDArray[np.int32],
    start: int,
    corner: tuple[int, int],
    labels: NDArray[np.int64],
    floor_keys: NDArray[np.int32],
    floor_ties: NDArray[np.int64],
    slack: int,
    places: NDArray[np.int32],
    counts: NDArray[np.uint32],
    kept_keys: NDArray[np.int32],
    kept_first: NDArray[np.int32],
    kept_second: NDArray[np.int32],
    filled: int,
) -> tuple[int, int]:
    """Count the weights of a tile above the diagonal, and keep the edges that are heavier than both floors.

    Parameters
    ----------
    product : float32, shape (row, column)
        Correlations; their magnitude, at most 1, is the weight.
    patterns : int32, shape (row, column)
        The same memory.
    start : int
        The first row to read.
    corner : two ints
        Vertices of the first row and the first column. Only pairs of a row before its column are edges.
    labels : int64, shape (vertex,)
        What ties are broken by: the edge of the smaller label, then of the smaller other label, is the heavier one.
    floor_keys, floor_ties : shape (vertex,)
        From `tile_floors`.
    slack : int
        0: an edge as heavy as its floor is left out. 1: its tie decides.
    places : int32, shape (column,)
        Work space.
    counts : uint32, shape (bin,)
        Weight w is counted in bin ``min(int(w * bins), bins - 1)``.
    kept_keys, kept_first, kept_second : int32, shape (capacity,)
        The edges kept: patterns of their weights, and vertices.
    filled : int
        How many are kept already.

    Returns
    -------
    row, filled : int
        The first row that was not read: the number of rows, or an earlier one where a whole row of edges might not fit
        any more.

    Notes
    -----
    One pass, no allocation. Bins are computed apart from counting, so that the former vectorises: per weight 0.5 ns
    beside 0.8 in one loop where weights are small, 0.8 in both where they are spread. Where all are equal it takes 1.9,
    and four histograms in turn would take 0.7; they are slower on both others.
    """
    rows, columns = product.shape
    bins = counts.shape[0]
    scale = np.float32(bins)
    last = np.int32(bins - 1)
    for i in range(start, rows):
        if filled + columns > kept_keys.shape[0]:
            return i, filled
        vertex = corner[0] + i
        left = max(0, vertex + 1 - corner[1])
        row = product[i]
        row_patterns = patterns[i]
        for j in range(columns):
            places[j] = min(np.int32(abs(row[j]) * scale), last)
        for j in range(left, columns):
            counts[places[j]] += np.uint32(1)
        row_floor = floor_keys[vertex]
        column_floor = floor_keys[corner[1] : corner[1] + columns]
        for block in range(left, columns, BLOCK):
            stop = min(block + BLOCK, columns)
            hits = 0
            for j in range(block, stop):
                key = min(row_patterns[j] & MAGNITUDE, ONE)
                hits += key > min(row_floor, column_floor[j]) - slack
            if hits == 0:
                continue
            for j in range(block, stop):
                key = min(row_patterns[j] & MAGNITUDE, ONE)
                floor = min(row_floor, column_floor[j])
                if key < floor:
                    continue
                if key == floor:
                    if slack == 0:
                        continue
                    tie = np.int64(ABSENT)
                    if row_floor == floor:
                        tie = floor_ties[vertex]
                    if column_floor[j] == floor:
                        tie = max(tie, floor_ties[corner[1] + j])
                    if edge_tie(labels[vertex], labels[corner[1] + j]) >= tie:
                        continue
                kept_keys[filled] = key
                kept_first[filled] = vertex
                kept_second[filled] = corner[1] + j
                filled += 1
    return rows, filled


@kernel
def permute_columns(matrix: NDArray[np.float32], order: NDArray[np.int64], buffer: NDArray[np.float32]) -> None:
    """Put column ``order[k]`` of ``matrix`` (row, column) in place k, row by row; ``buffer`` (column,) is work space.

    ``order`` may name fewer columns than there are; what then stands behind them is left as it is.
    """
    for i in range(matrix.shape[0]):
        row = matrix[i]
        for j in range(row.shape[0]):
            buffer[j] = row[j]
        for j in range(order.shape[0]):
            row[j] = buffer[order[j]]


@kernel
def strongest_rows(product: NDArray[np.float32], rows: NDArray[np.int32], weights: NDArray[np.float32]) -> None:
    """Write for every column of ``product`` the row of the largest magnitude, and that magnitude, both (column,)."""
    rows[:] = 0
    weights[:] = np.float32(0)
    for i in range(product.shape[0]):
        row = product[i]
        for j in range(row.shape[0]):
            weight = abs(row[j])
            heavier = weight > weights[j]
            weights[j] = weight if heavier else weights[j]
            rows[j] = i if heavier else rows[j]

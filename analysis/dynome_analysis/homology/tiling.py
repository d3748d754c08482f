"""Reads every tile of a correlation matrix once, on several threads: weights counted, spanning forest kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count, pairwise
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from dynome_analysis.homology.forests import EdgeList, GrowingForest, spanning_forest
from dynome_analysis.kernels.forests import tile_floors
from dynome_analysis.kernels.tiles import permute_columns, scan_tile, strongest_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["reduce_tiles"]

# How many units all others are compared with beforehand, and how many times as many units there must be. [O]
LANDMARKS = 128
LANDMARKS_PAY = 8
# Columns that are compared with the landmarks at once: 512 kB of products.
SLICE = 1024
# Vertices tried as root of a tile's floors. [O]
ROOTS = 16
# Edges that a thread keeps before it brings them to the forest: at least this, and this many per vertex. [O]
KEPT = 1 << 16
KEPT_PER_VERTEX = 4


def reduce_tiles(
    sides: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int64]],
    *,
    tile: int,
    bins: int,
    unique: bool,
    threads: int,
) -> tuple[EdgeList, NDArray[np.int64]]:
    """Return spanning forest and counted weights of the correlations within one side, or between two.

    Parameters
    ----------
    sides : one or two of float32, shape (sample, unit)
        Standardised columns, none of them dead; their columns are *reordered in place*, to have strongly correlated
        units in the same tile.
    labels : as many of int64, shape (unit,)
        What ties are broken by.
    tile, bins, unique, threads
        As for `tile_homology`.

    Returns
    -------
    forest : EdgeList
        Heaviest first; its vertices count through the sides, in the order of ``labels``.
    counts : int64, shape (bin,)
    """
    widths = [side.shape[1] for side in sides]
    offsets = np.concatenate([[0], np.cumsum(widths)])
    vertices = int(offsets[-1])
    original = np.arange(vertices)
    hints = _landmark_forest(sides, offsets)
    if hints.keys.size:
        row = GrowingForest(original, unique=False, hints=hints).arrangement.vertices.astype(np.int64)
        buffer = np.empty(max(widths), np.float32)
        for side, start, stop in zip(sides, offsets[:-1], offsets[1:]):
            chosen = row[(row >= start) & (row < stop)]
            permute_columns(side, chosen - start, buffer)
            original[start:stop] = chosen
        place = np.empty(vertices, np.int32)
        place[original] = np.arange(vertices)
        hints = EdgeList(hints.keys, place[hints.first], place[hints.second])
    names = np.concatenate(labels)[original]
    forest = GrowingForest(names, unique=unique, hints=hints)
    tiles = list(_tiles(widths, tile))
    tickets = count()
    threads = max(1, min(threads, len(tiles)))

    def work(_: int) -> NDArray[np.int64]:
        return _read_tiles(sides, offsets, tiles, tickets, forest, bins)

    with threadpool_limits(limits=1, user_api="blas") if threads > 1 else nullcontext():
        if threads == 1:
            counted = [work(0)]
        else:
            with ThreadPoolExecutor(threads) as pool:
                counted = list(pool.map(work, range(threads)))
    edges = forest.edges
    back = original.astype(np.int32)
    return EdgeList(edges.keys, back[edges.first], back[edges.second]), np.sum(counted, axis=0)


def _tiles(widths: Sequence[int], tile: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield first and last row, first and last column of every tile, columns counted from their side's start."""
    bounds = [np.linspace(0, width, -(-width // tile) + 1).astype(int).tolist() for width in widths]
    for number, rows in enumerate(pairwise(bounds[0])):
        for columns in pairwise(bounds[0][number:] if len(bounds) == 1 else bounds[1]):
            yield *rows, *columns


def _read_tiles(
    sides: Sequence[NDArray[np.float32]],
    offsets: NDArray[np.int64],
    tiles: Sequence[tuple[int, int, int, int]],
    tickets: Iterator[int],
    forest: GrowingForest,
    bins: int,
) -> NDArray[np.int64]:
    """Read tiles until there are none left; return the counted weights."""
    rows_of, columns_of = sides[0], sides[-1]
    offset = int(offsets[-2])
    vertices = forest.labels.size
    largest = max((b - a) * (d - c) for a, b, c, d in tiles) if tiles else 0
    buffer = np.empty(largest, np.float32)
    total = np.zeros(bins, np.int64)
    counts = np.zeros(bins, np.uint32)
    counted = 0
    # A scan needs room for a whole row before it takes the next one.
    capacity = max(KEPT, KEPT_PER_VERTEX * vertices, *(right - left for *_, left, right in tiles))
    kept = EdgeList(*(np.empty(capacity, np.int32) for _ in range(3)))
    filled = 0
    floor_keys = np.empty(vertices, np.int32)
    floor_ties = np.empty(vertices, np.int64)
    slack = 1 if forest.unique else 0
    while (ticket := next(tickets)) < len(tiles):
        top, bottom, left, right = tiles[ticket]
        height, width = bottom - top, right - left
        product = buffer[: height * width].reshape(height, width)
        np.matmul(rows_of[:, top:bottom].T, columns_of[:, left:right], out=product)
        if counted + product.size > np.iinfo(np.uint32).max:
            total += counts
            counts[:] = 0
            counted = 0
        counted += product.size
        bounds = (top, bottom, offset + left, offset + right)
        if bounds[:2] == bounds[2:]:
            bounds = (top, bottom, 0, 0)
        members = np.empty((3, height + width), np.int64)
        places = np.empty(width, np.int32)
        row = 0
        while row < height:
            tile_floors(*forest.arrangement, bounds, ROOTS, members, floor_keys, floor_ties)
            row, filled = scan_tile(
                product,
                product.view(np.int32),
                row,
                (top, offset + left),
                forest.labels,
                floor_keys,
                floor_ties,
                slack,
                places,
                counts,
                *kept,
                filled,
            )
            if row < height or filled > vertices:
                forest.bring(EdgeList(*(column[:filled] for column in kept)))
                filled = 0
    forest.bring(EdgeList(*(column[:filled] for column in kept)))
    return total + counts


def _landmark_forest(sides: Sequence[NDArray[np.float32]], offsets: NDArray[np.int64]) -> EdgeList:
    """Return a forest over nearly all vertices, with weights a little below the real ones.

    Every unit is joined with the most strongly correlated of some evenly spaced landmarks (of the other side, where
    there are two), and these among each other. O(sample * unit * landmarks) time.
    """
    if min(side.shape[1] for side in sides) < LANDMARKS_PAY * LANDMARKS:
        nothing = np.empty(0, np.int32)
        return EdgeList(nothing, nothing, nothing)
    chosen = [np.linspace(0, side.shape[1] - 1, LANDMARKS).astype(np.int64) for side in sides]
    landmarks = [np.ascontiguousarray(side[:, places].T) for side, places in zip(sides, chosen)]
    among = np.abs(landmarks[0] @ landmarks[-1].T)
    if len(sides) == 1:
        among = np.triu(among, 1)  # what is 0 is left out below
    parts = [
        (among.ravel(), np.repeat(chosen[0], LANDMARKS), np.tile(offsets[-2] + chosen[-1], LANDMARKS)),
    ]
    for side, start, places, lines in zip(sides, offsets[:-1], chosen[::-1], landmarks[::-1]):
        targets = places + (0 if len(sides) == 1 else offsets[1] - start)
        for left in range(0, side.shape[1], SLICE):
            product = lines @ side[:, left : left + SLICE]
            here = start + left + np.arange(product.shape[1])
            if len(sides) == 1:
                inside = np.flatnonzero((places >= left) & (places < left + SLICE))
                product[inside, places[inside] - left] = 0  # a landmark is not its own neighbour
            rows, weights = np.empty(here.size, np.int32), np.empty(here.size, np.float32)
            strongest_rows(product, rows, weights)
            parts.append((weights, targets[rows], here))
    weights, first, second = (np.concatenate(column) for column in zip(*parts))
    # Another product of the same two columns, of norm 1, differs by no more than the roundings of both sums.
    weights = np.minimum(weights, 1) - np.float32((sides[0].shape[0] + 2) * 2.0**-23)
    useful = weights > 0
    edges = EdgeList(weights[useful].view(np.int32), first[useful].astype(np.int32), second[useful].astype(np.int32))
    return spanning_forest(edges, int(offsets[-1]))

"""Births and death histogram of a connectome that does not fit in memory, tile by tile. Numbers only.

No (unit, unit) array is ever made: a tile of correlations is computed, read once, and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.correlation import DEAD_TOLERANCE, standardise
from dynome_analysis.forests import EdgeList, edge_ties, spanning_forest
from dynome_analysis.histogram import BINS, WeightHistogram, check_bins
from dynome_analysis.kernels.tiles import permute_columns
from dynome_analysis.tiling import reduce_tiles, usable_cores
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["TILE", "PartialHomology", "StreamedHomology", "finish", "merge", "stream_homology", "tile_homology"]

# Columns and rows of a tile: 4 MB of correlations, beyond which the matrix product gets no faster. [O]
TILE = 1024


@dataclass(frozen=True, eq=False)
class StreamedHomology:
    """Births and deaths of one connectome.

    Attributes
    ----------
    births : float32, shape (unit - 1,)
        Weights of the maximum spanning tree, ascending.
    deaths : WeightHistogram
        All other weights, within ``deaths.bound``.
    dead : bool, shape (unit,)
        Units without variance.
    edges : int32, shape (unit - 1, 2), or None
        The tree's edge of each birth, the smaller unit first; None where it was not asked for.
    """

    births: NDArray[np.float32]
    deaths: WeightHistogram
    dead: NDArray[np.bool_]
    edges: NDArray[np.int32] | None


@dataclass(frozen=True, eq=False)
class PartialHomology:
    """What a set of tiles says of the homology: arrays only, fit to travel between processes.

    Attributes
    ----------
    weights : float32, shape (edge,)
        Of the maximum spanning forest of the set's edges, descending.
    edges : int32, shape (edge, 2)
        Units at the ends of these, the smaller first.
    histogram : WeightHistogram
        All weights of the set, the forest's included.
    dead : int64, shape (dead unit,)
        Units without variance, ascending.
    """

    weights: NDArray[np.float32]
    edges: NDArray[np.int32]
    histogram: WeightHistogram
    dead: NDArray[np.int64]


def stream_homology(
    activations: NDArray[np.floating[Any]],
    *,
    tile: int = TILE,
    bins: int = BINS,
    edges: bool = False,
    threads: int | None = None,
    dead_tolerance: float = DEAD_TOLERANCE,
) -> StreamedHomology:
    """Return births, and deaths counted in bins, of the |Pearson| connectome of activations, without the connectome."""
    partial = tile_homology(
        activations, tile=tile, bins=bins, unique=edges, threads=threads, dead_tolerance=dead_tolerance
    )
    return finish(partial, activations.shape[1], edges=edges)


def tile_homology(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]] | None = None,
    *,
    starts: tuple[int, int] = (0, 0),
    tile: int = TILE,
    bins: int = BINS,
    unique: bool = True,
    threads: int | None = None,
    dead_tolerance: float = DEAD_TOLERANCE,
) -> PartialHomology:
    """Return the homology of the edges within one set of units, or between two."""
    check_bins(bins)
    sides: list[NDArray[np.float32]] = []
    alive: list[NDArray[np.int64]] = []
    dead: list[NDArray[np.int64]] = []
    for block, start in zip([first] if second is None else [first, second], starts):
        columns, is_dead = standardise(block, dead_tolerance=dead_tolerance)
        chosen = np.flatnonzero(~is_dead)
        if chosen.size < is_dead.size:
            permute_columns(columns, chosen, np.empty(is_dead.size, np.float32))
        sides.append(columns[:, : chosen.size])
        alive.append(start + chosen)
        dead.append(start + np.flatnonzero(is_dead))
    forest, counts = reduce_tiles(
        sides, alive, tile=tile, bins=bins, unique=unique, threads=usable_cores() if threads is None else threads
    )
    labels = np.concatenate(alive + dead)
    if any(part.size for part in dead):
        zero = _edges_of_dead_units(alive, dead, labels)
        together = EdgeList.joined(forest, zero)
        forest = spanning_forest(together, labels.size, edge_ties(together, labels) if unique else None)
        counts[0] += _pairs([a.size + d.size for a, d in zip(alive, dead)]) - _pairs([a.size for a in alive])
    ends = np.sort(np.stack([labels[forest.first], labels[forest.second]], axis=1), axis=1).astype(np.int32)
    return PartialHomology(forest.keys.view(np.float32), ends, WeightHistogram(counts), np.sort(np.concatenate(dead)))


def merge(first: PartialHomology, second: PartialHomology) -> PartialHomology:
    """Return what two disjoint sets of tiles say together; commutative and associative."""
    ends = np.concatenate([first.edges, second.edges])
    labels, vertices = np.unique(ends, return_inverse=True)
    columns = vertices.reshape(ends.shape).astype(np.int32)
    keys = np.concatenate([first.weights, second.weights]).view(np.int32)
    together = EdgeList(keys, columns[:, 0].copy(), columns[:, 1].copy())
    forest = spanning_forest(together, labels.size, edge_ties(together, labels.astype(np.int64)))
    return PartialHomology(
        forest.keys.view(np.float32),
        np.stack([labels[forest.first], labels[forest.second]], axis=1),
        first.histogram + second.histogram,
        np.union1d(first.dead, second.dead),
    )


def finish(partial: PartialHomology, units: int, *, edges: bool = False) -> StreamedHomology:
    """Return the homology of a connectome of ``units`` units, all tiles of which are in ``partial``."""
    pairs = units * (units - 1) // 2
    if partial.histogram.total != pairs or partial.weights.size != units - 1:
        raise InvalidArgumentError(
            f"{units} units have {pairs} edges, but the merged tiles hold {partial.histogram.total}: "
            "merge every tile of the upper triangle, each once"
        )
    dead = np.zeros(units, np.bool_)
    dead[partial.dead] = True
    births = partial.weights[::-1].copy()
    return StreamedHomology(
        births, partial.histogram.subtract(births), dead, partial.edges[::-1].copy() if edges else None
    )


def _pairs(sizes: Sequence[int]) -> int:
    return sizes[0] * (sizes[0] - 1) // 2 if len(sizes) == 1 else sizes[0] * sizes[1]


def _edges_of_dead_units(
    alive: Sequence[NDArray[np.int64]], dead: Sequence[NDArray[np.int64]], labels: NDArray[np.int64]
) -> EdgeList:
    """Return edges of weight 0 among which are those of the unique spanning forest that touch a dead unit.

    No product is needed for these. Of the edges at a dead unit the forest needs only those that also touch the first
    unit of a side or its first dead one: the others close a cycle of such edges that all come before them.
    """
    order = np.argsort(labels)
    ranked = labels[order]
    sides = [np.sort(np.concatenate(both)) for both in zip(alive, dead)]
    first, second = sides[0], sides[-1]
    hubs = [np.concatenate([side[:1], np.sort(part)[:1]]) for side, part in zip(sides, dead)]
    pairs = np.concatenate(
        [
            np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
            for a, b in ((hubs[0], second), (first, hubs[-1]))
        ]
    )
    touching = np.isin(pairs, np.concatenate(dead)).any(axis=1) & (pairs[:, 0] != pairs[:, 1])
    ends = order[np.searchsorted(ranked, pairs[touching])].astype(np.int32)
    return EdgeList(np.zeros(len(ends), np.int32), ends[:, 0].copy(), ends[:, 1].copy())

"""Births and death histogram of a connectome that does not fit in memory, tile by tile. Numbers only.

No (unit, unit) array is ever made: a tile of correlations is computed, read once, and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.connectome.columns import DEAD_TOLERANCE, standardise
from dynome_analysis.homology.forests import EdgeList, edge_ties, spanning_forest
from dynome_analysis.homology.histogram import BINS, WeightHistogram, check_bins
from dynome_analysis.homology.tiling import reduce_tiles
from dynome_analysis.kernels.tiles import permute_columns
from dynome_analysis.threads import usable_cores
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "TILE",
    "PartialHomology",
    "StreamedHomology",
    "finish",
    "merge",
    "stream_homology",
    "streaming_bytes",
    "tile_homology",
]

# Columns and rows of a tile: 4 MB of correlations per thread. 512 was 10 to 20 % slower, 2048 about as fast. [O]
TILE = 1024
# Below this a product of tiles is several times slower. [O]
SMALLEST_TILE = 128


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
    memory_limit: int | None = None,
    dead_tolerance: float = DEAD_TOLERANCE,
) -> StreamedHomology:
    """Return births, and deaths counted in bins, of the |Pearson| connectome of activations, without the connectome.

    Parameters
    ----------
    activations : floating, shape (sample, unit)
        Finite; never modified.
    tile : int
        Units along the sides of a tile.
    bins : int
        Of the histogram of deaths; a power of two.
    edges : bool
        Return the edges of the spanning tree too. Of edges with equal weight the one with the smaller first unit, then
        with the smaller second one, counts as the heavier, which makes the tree unique.
    threads : int, optional
        Tiles at a time; all usable cores by default. With several, BLAS gets one thread each for the time of the call
        (in the whole process); with one, BLAS is left as it is.
    memory_limit : int, optional
        Bytes beyond the activations; tiles are made smaller to stay within, see `streaming_bytes`.
    dead_tolerance : float
        As for `correlate`.

    Returns
    -------
    StreamedHomology

    Raises
    ------
    InvalidArgumentError
        ``activations`` is not a two-dimensional floating array with at least one sample and one unit; tile or threads
        below 1, bins that are no power of two; a memory limit that even small tiles exceed.
    InvalidDataError
        A value is NaN or infinite.

    Notes
    -----
    METHODS.md section 2. Weights are those of `correlate` up to the last bits of a float32 product, since products of
    another shape sum in another order: births agree within 1e-6, deaths within ``deaths.bound`` more.

    O(sample * unit^2) time: one matrix product of the upper triangle, and one pass over each of its tiles. The memory
    is one float32 copy of the activations and what `streaming_bytes` says for tiles and forest.
    """
    samples, units = _check_shape(activations)
    threads = usable_cores() if threads is None else threads
    _check_positive(tile=tile, threads=threads)
    if memory_limit is not None:
        tile = _fitting_tile(samples, units, tile, bins, threads, memory_limit)
    partial = tile_homology(
        activations, tile=tile, bins=bins, unique=edges, threads=threads, dead_tolerance=dead_tolerance
    )
    return finish(partial, units, edges=edges)


def streaming_bytes(samples: int, units: int, *, tile: int = TILE, bins: int = BINS, threads: int = 1) -> int:
    """Return about how many bytes `stream_homology` takes beyond the activations.

    ``4 sample unit`` for their standardised copy, 300 per unit for the forest, and for each thread ``4 tile^2`` for a
    tile, 12 per bin and 70 per unit (at least 1 MB) for edges that the forest may need.
    """
    wide = min(tile, units)
    return 4 * samples * units + 300 * units + threads * (4 * wide * wide + 12 * bins + max(70 * units, 1 << 20))


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
    """Return what the edges within one set of units say of the homology, or those between two sets.

    The piece of work of a reduction over many workers: cut the units into sets, take every set and every two of them,
    `merge` the results in any order, and `finish`.

    Parameters
    ----------
    first, second : floating, shape (sample, unit)
        Activations of one set of consecutive units, or of two sets without a common unit.
    starts : two ints
        Number of the first unit of each set in the whole connectome; the second set lies behind the first.
    tile, bins, threads, dead_tolerance
        As for `stream_homology`.
    unique : bool
        Break ties by unit, as ``edges`` of `stream_homology` does; False is faster where many weights are equal.

    Returns
    -------
    PartialHomology

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `stream_homology`; sets that overlap, or with different numbers of samples.

    Notes
    -----
    Cost as for `stream_homology`, with the units of both sets; the time is that of the pairs asked for.
    """
    check_bins(bins)
    threads = usable_cores() if threads is None else threads
    _check_positive(tile=tile, threads=threads)
    blocks = [first] if second is None else [first, second]
    shapes = [_check_shape(block) for block in blocks]
    if second is not None and shapes[0][0] != shapes[1][0]:
        raise InvalidArgumentError(f"both sets must have the same samples; got {shapes[0][0]} and {shapes[1][0]}")
    if starts[0] < 0 or (second is not None and starts[1] < starts[0] + shapes[0][1]):
        raise InvalidArgumentError(
            f"the second set of units must start behind the first, {shapes[0][1]} units from {starts[0]}; "
            f"got starts={starts}"
        )
    sides: list[NDArray[np.float32]] = []
    alive: list[NDArray[np.int64]] = []
    dead: list[NDArray[np.int64]] = []
    for block, start in zip(blocks, starts):
        columns, is_dead = standardise(block, dead_tolerance=dead_tolerance)
        chosen = np.flatnonzero(~is_dead)
        if chosen.size < is_dead.size:
            permute_columns(columns, chosen, np.empty(is_dead.size, np.float32))
        sides.append(columns[:, : chosen.size])
        alive.append(start + chosen)
        dead.append(start + np.flatnonzero(is_dead))
    forest, counts = reduce_tiles(sides, alive, tile=tile, bins=bins, unique=unique, threads=threads)
    labels = np.concatenate(alive + dead)
    if any(part.size for part in dead):
        zero = _edges_of_dead_units(alive, dead, labels)
        together = EdgeList.joined(forest, zero)
        forest = spanning_forest(together, labels.size, edge_ties(together, labels) if unique else None)
        counts[0] += _pairs([a.size + d.size for a, d in zip(alive, dead)]) - _pairs([a.size for a in alive])
    ends = np.sort(np.stack([labels[forest.first], labels[forest.second]], axis=1), axis=1).astype(np.int32)
    return PartialHomology(forest.keys.view(np.float32), ends, WeightHistogram(counts), np.sort(np.concatenate(dead)))


def merge(first: PartialHomology, second: PartialHomology) -> PartialHomology:
    """Return what two sets of tiles say together; the order of merging changes nothing.

    Parameters
    ----------
    first, second : PartialHomology
        Of sets of tiles that have none in common, with the same bins.

    Returns
    -------
    PartialHomology
        Commutative and associative: in weights, histogram and dead units always, in edges where all parts were made
        with ``unique``.

    Raises
    ------
    InvalidArgumentError
        Different bins.

    Notes
    -----
    ``MSF(A and B) = MSF(MSF(A) and MSF(B))``: the lightest edge of a cycle stays the lightest of that cycle in
    whatever is added. O(edge log edge) time, 100 bytes per edge.
    """
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
    """Return the homology of a connectome of ``units`` units, all tiles of which are in ``partial``.

    ``edges`` returns the tree too. Raises InvalidArgumentError where the number of edges tells that tiles are missing
    or were merged twice; one tile twice in place of another of the same shape is not noticed.
    """
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


def _check_shape(activations: NDArray[np.floating[Any]]) -> tuple[int, int]:
    shape = np.shape(activations)
    if len(shape) != 2:
        raise InvalidArgumentError(f"activations must be of shape (sample, unit); got {shape}")
    return shape[0], shape[1]


def _check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise InvalidArgumentError(f"{name} must be at least 1; got {value}")


def _fitting_tile(samples: int, units: int, tile: int, bins: int, threads: int, limit: int) -> int:
    """Return the tile, halved until it fits, or say how much memory there must be."""
    while (needed := streaming_bytes(samples, units, tile=tile, bins=bins, threads=threads)) > limit:
        if tile <= SMALLEST_TILE:
            raise InvalidArgumentError(
                f"{units} units and {samples} samples need {needed / 1e6:.0f} MB beside the activations even with "
                f"small tiles; memory_limit is {limit / 1e6:.0f} MB: raise it, or take fewer threads, samples or units"
            )
        tile //= 2
    return tile


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

"""One connectome over many workers: groups of its tiles as tasks, their results merged as a tree."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute, one_blas_thread
from dynome_analysis.connectome.columns import DEAD_TOLERANCE, non_finite_units
from dynome_analysis.homology.histogram import BINS, check_bins
from dynome_analysis.homology.streaming import TILE, PartialHomology, StreamedHomology, finish, merge, tile_homology
from dynome_analysis.reading import JointArray
from dynome_analysis.recording import Recording
from dynome_analysis.whole import check_whole
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.reading import SnapshotReader

__all__ = ["tiled_homology"]

# Units of a segment, in tiles: a task between two segments has 16 tiles, and the workers many tasks to share. [O]
TILES_PER_SEGMENT = 4


def tiled_homology(
    source: Recording | xr.DataArray,
    snapshot: int = -1,
    *,
    sites: Sequence[str] | str | None = None,
    tile: int = TILE,
    bins: int = BINS,
    edges: bool = False,
    dead_tolerance: float = DEAD_TOLERANCE,
    progress: Progress | None = None,
) -> StreamedHomology:
    """Return births, and deaths counted in bins, of one connectome that is spread over all workers and never held.

    The units are cut into segments. A task takes all pairs of units of one segment, or of two, and a tree of tasks
    merges what they found: `stream_homology` for Dask's threads, or for a cluster.

    Parameters
    ----------
    source : Recording, or DataArray
        A DataArray of activations is (sample, unit) or (snapshot, sample, unit), in memory or lazy.
    snapshot : int
        Position among the snapshots, from the end where negative.
    sites : str or sequence of str, optional
        Of a recording: names or shell patterns; all sites, as one joint graph, by default.
    tile, bins, edges, dead_tolerance
        As for `stream_homology`.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    StreamedHomology
        As of `stream_homology`; weights may differ in the last bit, with the shapes of the tiles.

    Raises
    ------
    InvalidArgumentError
        Neither a recording nor such activations, no such snapshot, a pattern that matches no site.
    InvalidDataError
        Activations hold NaN or infinity; names recording, epoch and site where they are known.
    CorruptRecordingError
        A stored file is missing, truncated or changed; names it.

    Notes
    -----
    METHODS.md section 2. O(sample * unit^2) time over all workers. A segment is read once, by the worker that needs it
    first, out of the sites that it overlaps; a task holds two segments twice (as read, and standardised), one tile,
    and some 200 bytes per unit.
    """
    check_bins(bins)
    if tile < 1:
        raise InvalidArgumentError(f"tile must be a positive number of units; got {tile}")
    units, read = _segments_of(source, snapshot, sites)
    size = TILES_PER_SEGMENT * tile
    starts = range(0, units, size)
    segments = [read(start, min(start + size, units)) for start in starts]
    options = {"tile": tile, "bins": bins, "unique": edges, "dead_tolerance": dead_tolerance}
    group = dask.delayed(_group)
    parts = [
        group(segments[a], None if a == b else segments[b], (starts[a], starts[b]), options)
        for a, b in combinations_with_replacement(range(len(segments)), 2)
    ]
    while len(parts) > 1:
        parts = [dask.delayed(_merge)(*parts[k : k + 2]) for k in range(0, len(parts), 2)]
    (whole,) = compute(parts, description="births and deaths", progress=progress)
    return finish(whole, units, edges=edges)


def _group(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]] | None,
    starts: tuple[int, int],
    options: dict[str, Any],
) -> PartialHomology:
    with one_blas_thread():
        return tile_homology(first, second, starts=starts, threads=1, **options)


def _merge(*parts: PartialHomology) -> PartialHomology:
    return parts[0] if len(parts) == 1 else merge(*parts)


def _segments_of(source: Recording | xr.DataArray, snapshot: int, sites: Sequence[str] | str | None) -> tuple[int, Any]:
    """Return the number of units, and a function that makes the task which reads columns ``start`` to ``stop``."""
    if isinstance(source, Recording):
        reader = source.reader(sites)
        position = _position(snapshot, len(reader.indices))
        shared = dask.delayed(reader, traverse=False)
        return reader.shape[1], lambda start, stop: dask.delayed(_read_columns)(shared, position, start, stop)
    if not isinstance(source, xr.DataArray) or source.dims not in (("sample", "unit"), ("snapshot", "sample", "unit")):
        found = f"{type(source).__name__} {tuple(getattr(source, 'dims', ()))}"
        raise InvalidArgumentError(
            f"source must be a recording, or activations as a DataArray (snapshot, sample, unit); got {found}"
        )
    if sites is not None:
        raise InvalidArgumentError("sites are chosen when activations are read: Recording.activations(sites)")
    values = source.data
    if values.ndim == 3:
        values = values[_position(snapshot, values.shape[0])]
    return values.shape[1], lambda start, stop: dask.delayed(_as_array)(values[:, start:stop])


def _position(snapshot: int, count: int) -> int:
    if not -count <= check_whole("snapshot", snapshot) < count:
        raise InvalidArgumentError(f"snapshot must be a position from {-count} to {count - 1}; got {snapshot}")
    return snapshot % count


def _as_array(values: Any) -> NDArray[np.floating[Any]]:
    return np.asarray(values)


def _read_columns(reader: SnapshotReader, position: int, start: int, stop: int) -> NDArray[np.floating[Any]]:
    """Read units ``start`` to ``stop`` of the joint graph of a snapshot, out of the sites that hold them."""
    columns = JointArray(reader)[position, :, start:stop]
    bad = non_finite_units(columns)
    if bad.size:
        named = ", ".join(dict.fromkeys(repr(str(site)) for site in reader.labels[start + bad]))
        raise InvalidDataError(
            f"{reader.recording}: activations of {named} hold NaN or infinity at {reader.moment(position)} "
            f"in {bad.size} of units {start} to {stop - 1}; a connectome needs finite values: choose other sites "
            "or another snapshot"
        )
    return columns

"""Signatures of connectomes: births and deaths, Rips diagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.homology import births_and_deaths, number_of_deaths
from dynome_analysis.labelled.blocks import map_snapshots, one_snapshot_per_chunk
from dynome_analysis.persistence import Engine, find_engine, rips_diagrams
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["graph_homology", "pad_points", "rips"]


def graph_homology(connectomes: xr.DataArray) -> xr.Dataset:
    """Return births of components and deaths of cycles of every connectome.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_), symmetric, non-negative, finite; the diagonal is not read.

    Returns
    -------
    Dataset
        ``births`` float32 (snapshot, birth), the unit - 1 weights of the maximum spanning tree, ascending; ``deaths``
        float32 (snapshot, death), all ``1 + unit * (unit - 3) / 2`` other weights, ascending; ``dead_units`` int64
        (snapshot), how many units have no edge at all: taken from the coordinate of that name where `connectomes`
        counted it, else the number of rows without a non-zero entry. Lazy where the input is.

    Raises
    ------
    InvalidArgumentError
        Not of dimensions (snapshot, unit, unit_) or not symmetric.
    InvalidDataError
        Negative, NaN or infinite weights.

    Notes
    -----
    METHODS.md section 2. Per snapshot O(unit^2 log unit) time and 4 * unit^2 bytes beyond the connectome.
    """
    units = _check_connectomes(connectomes)
    arrays = map_snapshots(
        _homology_block,
        one_snapshot_per_chunk(connectomes).data,
        [((units - 1,), np.float32), ((number_of_deaths(units),), np.float32), ((), np.int64)],
    )
    if connectomes.chunks is None:
        arrays = compute(arrays, description="births and deaths")
    born, died, isolated = arrays
    counted = connectomes.coords["dead_units"].data if "dead_units" in connectomes.coords else isolated
    return xr.Dataset(
        {
            "births": (("snapshot", "birth"), born),
            "deaths": (("snapshot", "death"), died),
            "dead_units": ("snapshot", counted),
        },
        coords=_moments(connectomes),
        attrs=provenance("graph_homology", {}, source=connectomes.attrs),
    )


def rips(
    connectomes: xr.DataArray,
    *,
    dimensions: Sequence[int] = (0, 1),
    engine: Engine = "auto",
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compute Vietoris-Rips persistence diagrams of every connectome, on the distance ``1 - connectome``.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_), symmetric, non-negative, finite.
    dimensions : sequence of int
        Degrees out of 0, 1, 2.
    engine : {"auto", "giotto-ph", "ripser"}
        What computes degrees above 0; degree 0 comes exactly from the births.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Dataset
        ``birth`` and ``death`` float64 and ``dimension`` int64, all (snapshot, point), sorted by (dimension, birth,
        death) within a snapshot; a degree 0 bar that never dies has death infinity. Shorter diagrams are padded with
        NaN and dimension -1. Computed at once, because the number of points is not known before.

    Raises
    ------
    InvalidArgumentError
        Unknown degree or engine, or no connectomes.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    METHODS.md section 3; cost as in `dynome_analysis.persistence.rips_diagrams`, one snapshot per task.
    """
    _check_connectomes(connectomes)
    degrees = tuple(sorted({int(dimension) for dimension in dimensions}))
    name = find_engine(engine) if degrees and degrees[-1] > 0 else engine
    blocks = one_snapshot_per_chunk(connectomes).data.to_delayed().ravel()
    tasks = [dask.delayed(_diagram_block)(block, degrees, name) for block in blocks]
    diagrams = compute(tasks, description="persistence diagrams", progress=progress)
    birth, death, degree = pad_points(diagrams)
    return xr.Dataset(
        {
            "birth": (("snapshot", "point"), birth),
            "death": (("snapshot", "point"), death),
            "dimension": (("snapshot", "point"), np.where(np.isnan(degree), -1, degree).astype(np.int64)),
        },
        coords=_moments(connectomes),
        attrs=provenance("rips", {"dimensions": degrees, "engine": name}, source=connectomes.attrs),
    )


def pad_points(tables: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Stack tables (point, column) of different lengths into an array (snapshot, point) per column, padded with NaN."""
    columns = tables[0].shape[1]
    padded = np.full((columns, len(tables), max(len(table) for table in tables)), np.nan)
    for row, table in enumerate(tables):
        padded[:, row, : len(table)] = table.T
    return tuple(padded)


def _homology_block(connectome: NDArray[np.floating[Any]], position: int) -> tuple[Any, ...]:
    born, died = births_and_deaths(connectome)
    edges = np.asarray(connectome) != 0
    np.fill_diagonal(edges, val=False)
    return born, died, np.int64(np.count_nonzero(~edges.any(axis=1)))


def _diagram_block(
    block: NDArray[np.floating[Any]], dimensions: tuple[int, ...], engine: Engine
) -> NDArray[np.float64]:
    diagrams = rips_diagrams(block[0], dimensions=dimensions, engine=engine)
    return np.concatenate(
        [np.column_stack([points, np.full(len(points), degree)]) for degree, points in diagrams.items()]
    )


def _check_connectomes(connectomes: xr.DataArray) -> int:
    """Return the number of units."""
    if not isinstance(connectomes, xr.DataArray) or connectomes.dims != ("snapshot", "unit", "unit_"):
        found = f"{type(connectomes).__name__} {tuple(getattr(connectomes, 'dims', ()))}"
        raise InvalidArgumentError(
            f"connectomes must be a DataArray (snapshot, unit, unit_), as dya.connectomes makes; got {found}"
        )
    return int(connectomes.sizes["unit"])


def _moments(labelled: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Return the coordinates that say when a snapshot was taken."""
    return {name: labelled.coords[name].variable for name in ("epoch", "step") if name in labelled.coords}

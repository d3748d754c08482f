"""Rips diagrams of connectomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.labelled.blocks import check_connectomes, moments, one_snapshot_per_chunk
from dynome_analysis.persistence.rips import Engine, Transform, parse_rips_options, rips_diagrams
from dynome_analysis.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["pad_points", "rips"]


def rips(
    connectomes: xr.DataArray,
    *,
    dimensions: Sequence[int] = (0, 1),
    transform: Transform = "1 - r",
    field: int = 2,
    engine: Engine = "auto",
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compute Vietoris-Rips persistence diagrams of every connectome.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_), symmetric, non-negative, finite.
    dimensions : sequence of int
        Degrees out of 0, 1, 2.
    transform : {"1 - r", "sqrt(1 - r)", "sqrt(1 - r^2)", "arccos r"}
        From weight to distance; see `dynome_analysis.persistence.rips.rips_distances`.
    field : int
        Homology over the field of this prime number of elements.
    engine : {"auto", "dynome", "giotto-ph", "ripser", "gudhi"}
        What computes degrees above 0, "auto" the first of these that is installed and knows the degree and the field;
        degree 0 comes exactly from the births.
    memory_limit : int, optional
        Bytes that the engine "dynome" may take for one snapshot, beside the connectome.
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
        Unknown degree, transform, field or engine, or no connectomes.
    InvalidDataError
        A connectome has a weight that is none, or the memory limit does not suffice.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    METHODS.md section 3; cost as in `dynome_analysis.persistence.rips.rips_diagrams`, one snapshot per task.
    """
    check_connectomes(connectomes)
    degrees, engines = parse_rips_options(dimensions, transform=transform, field=field, engine=engine)
    options = {"transform": transform, "field": field, "engine": engine, "memory_limit": memory_limit}
    blocks = one_snapshot_per_chunk(connectomes).data.to_delayed().ravel()
    tasks = [dask.delayed(_diagram_block)(block, degrees, options) for block in blocks]
    diagrams = compute(tasks, description="persistence diagrams", progress=progress)
    birth, death, degree = pad_points(diagrams)
    return xr.Dataset(
        {
            "birth": (("snapshot", "point"), birth),
            "death": (("snapshot", "point"), death),
            "dimension": (("snapshot", "point"), np.where(np.isnan(degree), -1, degree).astype(np.int64)),
        },
        coords=moments(connectomes),
        attrs=provenance(
            "rips",
            {"dimensions": degrees, "transform": transform, "field": field, "engines": engines},
            source=connectomes.attrs,
        ),
    )


def pad_points(tables: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Stack tables (point, column) of different lengths into an array (snapshot, point) per column, padded with NaN."""
    columns = tables[0].shape[1]
    padded = np.full((columns, len(tables), max(len(table) for table in tables)), np.nan)
    for row, table in enumerate(tables):
        padded[:, row, : len(table)] = table.T
    return tuple(padded)


def _diagram_block(
    block: NDArray[np.floating[Any]], dimensions: tuple[int, ...], options: Mapping[str, Any]
) -> NDArray[np.float64]:
    diagrams = rips_diagrams(block[0], dimensions=dimensions, **options)
    return np.concatenate(
        [np.column_stack([points, np.full(len(points), degree)]) for degree, points in diagrams.items()]
    )

"""Rips diagrams of connectomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.labelled.blocks import check_connectomes, moments, one_snapshot_per_chunk
from dynome_analysis.persistence import Engine, find_engine, rips_diagrams
from dynome_analysis.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["pad_points", "rips"]


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
    check_connectomes(connectomes)
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
        coords=moments(connectomes),
        attrs=provenance("rips", {"dimensions": degrees, "engine": name}, source=connectomes.attrs),
    )


def pad_points(tables: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Stack tables (point, column) of different lengths into an array (snapshot, point) per column, padded with NaN."""
    columns = tables[0].shape[1]
    padded = np.full((columns, len(tables), max(len(table) for table in tables)), np.nan)
    for row, table in enumerate(tables):
        padded[:, row, : len(table)] = table.T
    return tuple(padded)


def _diagram_block(
    block: NDArray[np.floating[Any]], dimensions: tuple[int, ...], engine: Engine
) -> NDArray[np.float64]:
    diagrams = rips_diagrams(block[0], dimensions=dimensions, engine=engine)
    return np.concatenate(
        [np.column_stack([points, np.full(len(points), degree)]) for degree, points in diagrams.items()]
    )

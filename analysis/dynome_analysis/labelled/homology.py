"""Births and deaths of connectomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dynome_analysis.compute import compute
from dynome_analysis.homology import births_and_deaths, number_of_deaths
from dynome_analysis.labelled.blocks import check_connectomes, map_snapshots, moments, one_snapshot_per_chunk
from dynome_analysis.provenance import provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["graph_homology"]


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
    units = check_connectomes(connectomes)
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
        coords=moments(connectomes),
        attrs=provenance("graph_homology", {}, source=connectomes.attrs),
    )


def _homology_block(connectome: NDArray[np.floating[Any]], position: int) -> tuple[Any, ...]:
    born, died = births_and_deaths(connectome)
    edges = np.asarray(connectome) != 0
    np.fill_diagonal(edges, val=False)
    return born, died, np.int64(np.count_nonzero(~edges.any(axis=1)))

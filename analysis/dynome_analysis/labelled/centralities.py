"""Strength and eigenvector centrality of connectomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dynome_analysis.compute import compute
from dynome_analysis.graphs.centrality import eigenvector_centrality
from dynome_analysis.graphs.dense import dense_graph
from dynome_analysis.labelled.blocks import check_connectomes, map_snapshots, moments, one_snapshot_per_chunk
from dynome_analysis.provenance import provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["connectome_centrality"]


def connectome_centrality(connectomes: xr.DataArray, *, check: bool = True) -> xr.Dataset:
    """Return how strongly each unit is connected, directly and through its neighbours, in every connectome.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_), symmetric, non-negative, finite; the diagonal is not used.
    check : bool, default True
        False trusts the connectomes to be so.

    Returns
    -------
    Dataset
        - ``strength`` float64 (snapshot, unit): the sum of a unit's edge weights; 0 for a dead unit
        - ``centrality`` float64 (snapshot, unit): the leading eigenvector, not negative, Euclidean norm 1; 0 outside
          the largest connected part, so for dead units. NaN at a snapshot without any edge, where it is not defined
        - ``eigenvalue`` float64 (snapshot), NaN as above
        - ``residual`` float64 (snapshot): ``|C x - eigenvalue x| / eigenvalue``, at most 1e-6; NaN as above
        - ``components`` int64 (snapshot): number of connected parts; a dead unit is one

        Lazy where the input is. Coordinates ``epoch`` and ``step`` on snapshot, ``site`` on unit.

    Raises
    ------
    InvalidArgumentError
        Not of dimensions (snapshot, unit, unit_), or not symmetric.
    InvalidDataError
        Negative, NaN or infinite weights; or two leading eigenvalues so close that the residual is not reached.

    Notes
    -----
    METHODS.md section 6. One task per snapshot, each starting anew: a start from the snapshot before
    (`graphs.dense.dense_centrality`) saves some two of eight products and would make every snapshot wait for the one
    before it. Per snapshot 4 to 12 passes over half the connectome, O(unit^2) each, and some 200 bytes per unit.
    """
    units = check_connectomes(connectomes)
    arrays = map_snapshots(
        _centrality_block,
        one_snapshot_per_chunk(connectomes).data,
        [((units,), np.float64), ((units,), np.float64), ((), np.float64), ((), np.float64), ((), np.int64)],
        check=check,
    )
    if connectomes.chunks is None:
        arrays = compute(arrays, description="centrality")
    strength, centrality, eigenvalue, residual, components = arrays
    site = {"site": connectomes.coords["site"].variable} if "site" in connectomes.coords else {}
    return xr.Dataset(
        {
            "strength": (("snapshot", "unit"), strength),
            "centrality": (("snapshot", "unit"), centrality),
            "eigenvalue": ("snapshot", eigenvalue),
            "residual": ("snapshot", residual),
            "components": ("snapshot", components),
        },
        coords=moments(connectomes) | site,
        attrs=provenance("connectome_centrality", {}, source=connectomes.attrs),
    )


def _centrality_block(connectome: NDArray[np.floating[Any]], position: int, *, check: bool) -> tuple[Any, ...]:
    graph = dense_graph(connectome, check=check)
    strength = graph.degree()
    if not strength.any():
        return strength, np.full(len(strength), np.nan), np.nan, np.nan, np.int64(len(strength))
    found = eigenvector_centrality(graph)
    return strength, found.values, found.eigenvalue, found.residual, np.int64(found.components)

"""The topological centroid of snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.distance.centroids import centroid, check_weights
from dynome_analysis.labelled.signatures import find_arrays, signature_rows
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["topological_centroid"]


def topological_centroid(
    signature: xr.Dataset,
    *,
    weights: Sequence[float] | NDArray[np.floating[Any]] | None = None,
    sizes: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Return the graph signature nearest to all snapshots: the mean of the l-th smallest births, and of deaths.

    Parameters
    ----------
    signature : Dataset
        Of `graph_homology` or `analyze`.
    weights : floating, shape (snapshot,), optional
        None negative, not all 0; equal by default.
    sizes : (int, int), optional
        Embed births and deaths by as many quantiles first, so that centroids of graphs of different sizes compare;
        needed where deaths are counted in a histogram.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Dataset
        ``births`` (birth) and ``deaths`` (death), float64, ascending. Computed at once. Of the same sizes as the
        signature it is a reference for `reconfiguration`.

    Raises
    ------
    InvalidArgumentError
        A signature without births and deaths; weights that are none.
    InvalidDataError
        A histogram of deaths without ``sizes``.

    Notes
    -----
    It minimises the weighted sum of squared "top" distances (METHODS.md section 2 [G]). Time linear in snapshots. A
    lazy signature is computed one snapshot per core at a time, in memory flat in the number of snapshots.
    """
    arrays = find_arrays(signature, "top")
    rows = signature_rows(arrays, metric="top", least=1)
    shares = check_weights(np.ones(len(rows)) if weights is None else weights)
    if len(shares) != len(rows):
        raise InvalidArgumentError(f"as many weights as snapshots are needed; got {len(shares)} for {len(rows)}")
    births, deaths = sizes or (None, None)
    tasks = [dask.delayed(_weighted_parts)(row, share, births, deaths) for row, share in zip(rows, shares)]
    # A tree of sums: Dask works it depth first, so that few partial sums are alive.
    while len(tasks) > 1:
        tasks = [dask.delayed(_add)(tasks[k : k + 4]) for k in range(0, len(tasks), 4)]
    born, died = compute(tasks, description="topological centroid", progress=progress)[0]
    return xr.Dataset(
        {"births": ("birth", born), "deaths": ("death", died)},
        attrs=provenance(
            "topological_centroid",
            {"weights": None if weights is None else shares.tolist(), "sizes": sizes},
            source=signature.attrs,
        ),
    )


def _weighted_parts(
    row: tuple[Any, Any], share: float, births: int | None, deaths: int | None
) -> tuple[NDArray[np.float64], ...]:
    return tuple(share * centroid([part], size=size) for part, size in zip(row, (births, deaths)))


def _add(parts: list[tuple[NDArray[np.float64], ...]]) -> tuple[NDArray[np.float64], ...]:
    sums = [part.copy() for part in parts[0]]
    for more in parts[1:]:
        for total, part in zip(sums, more):
            total += part
    return tuple(sums)

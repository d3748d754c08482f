"""Births and deaths of connectomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from dynome_analysis.compute import compute
from dynome_analysis.homology.births import births, births_and_deaths, check_connectome, number_of_deaths
from dynome_analysis.homology.histogram import BINS, bin_centres, death_histogram
from dynome_analysis.kernels.triangle import count_isolated
from dynome_analysis.labelled.blocks import check_connectomes, map_snapshots, moments, one_snapshot_per_chunk
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["graph_homology"]

Deaths = Literal["exact", "histogram"]


def graph_homology(
    connectomes: xr.DataArray, *, deaths: Deaths = "exact", bins: int = BINS, check: bool = True
) -> xr.Dataset:
    """Return births of components and deaths of cycles of every connectome.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_), symmetric, non-negative, finite; the diagonal is not read.
    deaths : {"exact", "histogram"}
        "exact": every death, ``2 unit^2`` bytes per snapshot. "histogram": deaths counted in uniform bins of [0, 1], 8
        bytes per bin and snapshot, which places each of them within half a bin.
    bins : int
        A power of two; for "histogram" only.
    check : bool
        False trusts the connectomes, as `births` does. Not left out by itself for a result of `connectomes`: its
        attributes would survive arithmetic that makes weights negative.

    Returns
    -------
    Dataset
        - ``births`` float32 (snapshot, birth), the unit - 1 weights of the maximum spanning tree, ascending
        - "exact": ``deaths`` float32 (snapshot, death), all ``1 + unit * (unit - 3) / 2`` other weights, ascending
        - "histogram": ``death_histogram`` int64 (snapshot, bin), how many of these lie in each bin, with a coordinate
          ``bin_centre`` float32 (bin) and an attribute ``bound``: the l-th smallest death differs by at most as much
          from the l-th smallest bin centre
        - ``dead_units`` int64 (snapshot), how many units have no edge at all: taken from the coordinate of that name
          where `connectomes` counted it, else the number of rows without a non-zero entry

        Lazy where the input is.

    Raises
    ------
    InvalidArgumentError
        Not of dimensions (snapshot, unit, unit_), not symmetric, another kind of deaths or number of bins.
    InvalidDataError
        Negative, NaN or infinite weights; for "histogram" also weights above 1.

    Notes
    -----
    METHODS.md section 2. Per snapshot, beyond the connectome: "exact" O(unit^2 log unit) time and ``2 unit^2`` bytes,
    "histogram" O(unit^2) time and 32 bytes per bin.
    """
    units = check_connectomes(connectomes)
    if deaths not in ("exact", "histogram"):
        raise InvalidArgumentError(f"deaths must be 'exact' or 'histogram'; got {deaths!r}")
    centres = bin_centres(bins) if deaths == "histogram" else None
    counted = "dead_units" in connectomes.coords
    arrays: list[Any] = map_snapshots(
        _homology_block,
        one_snapshot_per_chunk(connectomes).data,
        [
            ((units - 1,), np.float32),
            ((number_of_deaths(units),), np.float32) if centres is None else ((bins,), np.int64),
            ((), np.int64),
        ],
        bins=0 if centres is None else bins,
        check=check,
        count=not counted,
    )
    if connectomes.chunks is None:
        arrays = compute(arrays, description="births and deaths")
    born, died, isolated = arrays
    if counted:
        isolated = connectomes.coords["dead_units"].data
    coordinates = moments(connectomes)
    if centres is None:
        parameters: dict[str, Any] = {"deaths": deaths}
        named: dict[str, Any] = {"deaths": (("snapshot", "death"), died)}
    else:
        parameters = {"deaths": deaths, "bins": bins}
        coordinates["bin_centre"] = ("bin", centres)
        named = {"death_histogram": (("snapshot", "bin"), died, {"bound": 0.5 / bins})}
    return xr.Dataset(
        {"births": (("snapshot", "birth"), born), **named, "dead_units": ("snapshot", isolated)},
        coords=coordinates,
        attrs=provenance("graph_homology", parameters, source=connectomes.attrs),
    )


def _homology_block(
    connectome: NDArray[np.floating[Any]], position: int, *, bins: int, check: bool, count: bool
) -> tuple[Any, ...]:
    weights = check_connectome(connectome, check=check)
    isolated = np.int64(count_isolated(weights) if count else 0)
    if bins == 0:
        return *births_and_deaths(weights, check=False), isolated
    born = births(weights, check=False)
    return born, death_histogram(weights, births=born, bins=bins, check=False).counts, isolated

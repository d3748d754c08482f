"""Connectomes of a recording, lazily, one task per snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import dask
import numpy as np
import xarray as xr

from dynome_analysis.correlation import correlate, non_finite_units
from dynome_analysis.labelled.blocks import map_snapshots
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["connectomes", "correlate_snapshot"]

Measure = Literal["pearson"]
MEASURES = {"pearson": correlate}


def connectomes(
    recording: Recording, *, sites: Sequence[str] | str | None = None, measure: Measure = "pearson"
) -> xr.DataArray:
    """Return the functional connectome of every snapshot, lazily: one joint graph over all chosen sites.

    Parameters
    ----------
    recording : Recording
    sites : str or sequence of str, optional
        Names or shell patterns; all sites by default.
    measure : {"pearson"}
        How two units are compared: ``|Pearson correlation|`` over the samples of the probe.

    Returns
    -------
    DataArray
        float32, (snapshot, unit, unit_), one Dask chunk per snapshot; in [0, 1], symmetric, diagonal 0. Coordinates
        ``epoch``, ``step`` and ``dead_units`` (int64, how many units do not vary; lazy) on snapshot, ``site`` on
        unit, ``site_`` on unit_.

    Raises
    ------
    InvalidArgumentError
        An unknown measure, or a pattern that matches no site.
    InvalidDataError
        When computed: activations hold NaN or infinity; the message names recording, epoch and site.

    Notes
    -----
    METHODS.md section 1. Per snapshot O(sample * unit^2) time, 4 * unit^2 bytes plus two copies of the activations.
    """
    if measure not in MEASURES:
        raise InvalidArgumentError(f"measure must be one of {', '.join(MEASURES)}; got {measure!r}")
    activations = recording.activations(sites)
    reader = recording.reader(sites)
    units = activations.sizes["unit"]
    values, dead = map_snapshots(
        _correlate_block,
        activations.data,
        [((units, units), np.float32), ((), np.int64)],
        reader=dask.delayed(reader, traverse=False),
        measure=measure,
    )
    site = activations.coords["site"].to_numpy()
    return xr.DataArray(
        values,
        dims=("snapshot", "unit", "unit_"),
        coords={
            "epoch": activations.coords["epoch"],
            "step": activations.coords["step"],
            "dead_units": ("snapshot", dead),
            "site": ("unit", site),
            "site_": ("unit_", site),
        },
        name="connectome",
        attrs=provenance("connectomes", {"measure": measure, "sites": list(reader.arrays)}, source=activations.attrs),
    )


def correlate_snapshot(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, measure: Measure = "pearson"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return connectome and dead units of one snapshot; an error names recording, epoch and site."""
    try:
        return MEASURES[measure](activations)
    except InvalidDataError as error:
        bad = non_finite_units(activations)
        if bad.size == 0:
            raise
        sites = ", ".join(dict.fromkeys(repr(str(site)) for site in reader.labels[bad]))
        raise InvalidDataError(
            f"{reader.recording}: activations of {sites} hold NaN or infinity at {reader.moment(position)} "
            f"in {bad.size} of {activations.shape[1]} units; a connectome needs finite values: choose other sites, "
            f"or only the snapshots before, connectomes(recording).isel(snapshot=slice({position}))"
        ) from error


def _correlate_block(
    activations: NDArray[np.floating[Any]], position: int, *, reader: SnapshotReader, measure: Measure
) -> tuple[Any, ...]:
    connectome, dead = correlate_snapshot(activations, reader, position, measure)
    return connectome, np.int64(np.count_nonzero(dead))

"""Connectomes of a recording, lazily, one task per snapshot: whole, of some units, or within or between sites only."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import compute
from dynome_analysis.connectome.columns import Measure, check_measure
from dynome_analysis.connectome.correlation import correlate, non_finite_units
from dynome_analysis.labelled.blocks import check_connectomes, map_snapshots, moments, one_snapshot_per_chunk
from dynome_analysis.provenance import provenance
from dynome_analysis.whole import check_whole
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["Edges", "Measure", "choose_units", "connectomes", "correlate_snapshot", "site_blocks"]

Edges = Literal["all", "within", "between"]

# Rows whose absolute values are summed at a time.
ROWS = 256


def connectomes(
    recording: Recording,
    *,
    sites: Sequence[str] | str | None = None,
    measure: Measure = "pearson",
    signed: bool = False,
    edges: Edges = "all",
    units: int | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Return the functional connectome of every snapshot, lazily: one joint graph over all chosen sites.

    Parameters
    ----------
    recording : Recording
    sites : str or sequence of str, optional
        Names or shell patterns; all sites by default.
    measure : {"pearson", "spearman", "cosine", "partial"}
        How two units are compared over the samples of the probe; see `correlate`. "pearson" is the papers'.
    signed : bool
        Keep the sign. Homology and Rips persistence refuse signed connectomes that hold a negative value.
    edges : {"all", "within", "between"}
        Keep only edges between units of one site, or only those between units of different sites; others are 0. The
        graph keeps all units. A partial correlation is still one given *all* chosen units.
    units : int, optional
        Take only so many units, drawn once for all snapshots, from every site in proportion to its size but at least
        one [O]. All units by default.
    seed : int
        Of that draw.

    Returns
    -------
    DataArray
        float32, (snapshot, unit, unit_), one Dask chunk per snapshot; in [0, 1] ([-1, 1] if signed), symmetric,
        diagonal 0. Coordinates ``epoch``, ``step`` and ``dead_units`` (int64, how many units do not vary; lazy) on
        snapshot, ``site`` on unit, ``site_`` on unit_; where units were drawn, also ``unit`` and ``unit_`` (int64),
        their places among all units of the chosen sites.

    Raises
    ------
    InvalidArgumentError
        An unknown measure or kind of edges, a pattern that matches no site, fewer units than sites or more than there
        are.
    InvalidDataError
        When computed: activations hold NaN or infinity; the message names recording, epoch and site.

    Notes
    -----
    METHODS.md section 1. Per snapshot O(sample * unit^2) time, 4 * unit^2 bytes plus two copies of the activations.
    "spearman" sorts the activations as well, 9 ns a value; "partial" inverts a matrix of min(sample, unit) rows and
    takes five to ten times as long as "pearson".
    """
    check_measure(measure)
    if edges not in get_args(Edges):
        raise InvalidArgumentError(f"edges must be one of {', '.join(get_args(Edges))}; got {edges!r}")
    activations = recording.activations(sites)
    reader = recording.reader(sites)
    chosen = {}
    if units is not None:
        places = choose_units(reader.labels, units, seed=seed)
        activations = activations.isel(unit=places)
        chosen = {"unit": ("unit", places), "unit_": ("unit_", places)}
    site = activations.coords["site"].to_numpy()
    size = site.size
    recording.warn_of_small_batches(size)
    values, dead = map_snapshots(
        _correlate_block,
        one_snapshot_per_chunk(activations).data,
        [((size, size), np.float32), ((), np.int64)],
        reader=dask.delayed(reader, traverse=False),
        measure=measure,
        signed=signed,
        edges=edges,
        labels=site,
    )
    parameters = {
        "measure": measure,
        "sites": list(reader.arrays),
        "signed": bool(signed),
        "edges": edges,
        "units": None if units is None else int(units),
        "seed": int(seed),
    }
    return xr.DataArray(
        values,
        dims=("snapshot", "unit", "unit_"),
        coords={
            "epoch": activations.coords["epoch"],
            "step": activations.coords["step"],
            "dead_units": ("snapshot", dead),
            "site": ("unit", site),
            "site_": ("unit_", site),
            **chosen,
        },
        name="connectome",
        attrs=provenance("connectomes", parameters, source=activations.attrs),
    )


def site_blocks(connectomes: xr.DataArray) -> xr.DataArray:
    """Return the mean absolute weight within and between sites of every connectome.

    Parameters
    ----------
    connectomes : DataArray
        (snapshot, unit, unit_) with the coordinate ``site`` on unit, as `connectomes` makes.

    Returns
    -------
    DataArray
        float64, (snapshot, site, site_), symmetric, lazy where the input is. A block within a site is the mean over
        pairs of different units, NaN for a site of one unit; dead units count with their edges of 0.

    Raises
    ------
    InvalidArgumentError
        Not of dimensions (snapshot, unit, unit_), or without the coordinate.

    Notes
    -----
    O(unit^2 * site) time per snapshot, a few rows of memory. A summary of ours [O]; METHODS.md section 1.
    """
    check_connectomes(connectomes)
    if "site" not in connectomes.coords or connectomes.coords["site"].dims != ("unit",):
        raise InvalidArgumentError(
            "connectomes must say the site of each unit: a coordinate site on unit, as dya makes"
        )
    labels = connectomes.coords["site"].to_numpy()
    names = np.array(list(dict.fromkeys(labels.tolist())))
    [means] = map_snapshots(
        _mean_blocks,
        one_snapshot_per_chunk(connectomes).data,
        [((names.size, names.size), np.float64)],
        membership=(labels[:, None] == names).astype(np.float64),
    )
    if connectomes.chunks is None:
        [means] = compute([means], description="site blocks")
    return xr.DataArray(
        means,
        dims=("snapshot", "site", "site_"),
        coords={**moments(connectomes), "site": names, "site_": names},
        name="mean_absolute_weight",
        attrs=provenance("site_blocks", {}, source=connectomes.attrs),
    )


def choose_units(labels: NDArray[np.str_], units: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Draw ``units`` places from ``labels`` (the site of each unit), in proportion to the sites, at least one of each.

    Returns int64, shape (units,), ascending. Raises InvalidArgumentError for fewer units than sites, or more than all,
    and for a seed that is none.
    """
    units, seed = check_whole("units", units), check_whole("seed", seed, least=0)
    names, sizes = np.unique(labels, return_counts=True)
    if not names.size <= units <= labels.size:
        raise InvalidArgumentError(
            f"units must lie between the number of sites and the number of units, {names.size} and {labels.size}; "
            f"got {units}"
        )
    share = units * sizes / labels.size
    counts = np.maximum(np.floor(share), 1).astype(np.int64)
    while (missing := units - counts.sum()) != 0:
        # Towards the share, one at a time: at most as many steps as there are sites.
        counts[np.argmax(np.where(counts < sizes, share - counts, -np.inf))] += missing > 0
        counts[np.argmin(np.where(counts > 1, share - counts, np.inf))] -= missing < 0
    random = np.random.default_rng(seed)
    drawn = [random.choice(np.flatnonzero(labels == name), count, replace=False) for name, count in zip(names, counts)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def correlate_snapshot(
    activations: NDArray[np.floating[Any]],
    reader: SnapshotReader,
    position: int,
    measure: Measure = "pearson",
    *,
    signed: bool = False,
    labels: NDArray[np.str_] | None = None,
    threads: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return connectome and dead units of one snapshot; an error names recording, epoch and site.

    ``labels`` is the site of each unit, where these are not all units of the reader. One thread by default, because
    other snapshots keep the other cores busy.
    """
    try:
        return correlate(activations, measure=measure, signed=signed, threads=threads)
    except InvalidDataError as error:
        bad = non_finite_units(activations)
        if bad.size == 0:
            raise
        labels = reader.labels if labels is None else labels
        sites = ", ".join(dict.fromkeys(repr(str(site)) for site in labels[bad]))
        raise InvalidDataError(
            f"{reader.recording}: activations of {sites} hold NaN or infinity at {reader.moment(position)} "
            f"in {bad.size} of {activations.shape[1]} units; a connectome needs finite values: choose other sites, "
            f"or only the snapshots before, connectomes(recording).isel(snapshot=slice({position}))"
        ) from error


def _correlate_block(
    activations: NDArray[np.floating[Any]],
    position: int,
    *,
    reader: SnapshotReader,
    measure: Measure,
    signed: bool,
    edges: Edges,
    labels: NDArray[np.str_],
) -> tuple[Any, ...]:
    there = reader.trim(activations, position)
    connectome, dead = correlate_snapshot(there, reader, position, measure, signed=signed, labels=labels)
    if edges != "all":
        _clear_blocks(connectome, labels, within=edges == "between")
    return connectome, np.int64(np.count_nonzero(dead))


def _clear_blocks(connectome: NDArray[np.float32], labels: NDArray[np.str_], *, within: bool) -> None:
    """Set the edges within sites, or those between them, to 0; units of a site stand side by side."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    blocks = [slice(*ends) for ends in zip(starts, [*starts[1:], labels.size])]
    for rows, columns in product(blocks, blocks):
        if (rows == columns) == within:
            connectome[rows, columns] = 0


def _mean_blocks(
    connectome: NDArray[np.floating[Any]], position: int, *, membership: NDArray[np.float64]
) -> tuple[NDArray[np.float64]]:
    units, sites = membership.shape
    total = np.zeros((sites, sites))
    for first in range(0, units, ROWS):
        rows = np.abs(connectome[first : first + ROWS], dtype=np.float64)
        np.fill_diagonal(rows[:, first:], 0)
        total += membership[first : first + ROWS].T @ (rows @ membership)
    sizes = membership.sum(axis=0)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    return (np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0),)

"""How far snapshots lie apart: consecutive ones, all pairs, and how much of it is noise."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.distance.halves import paired_floor, split_samples
from dynome_analysis.distance.weights import pairwise_distances, sorted_distance
from dynome_analysis.homology.births import births_and_deaths
from dynome_analysis.labelled.blocks import moments
from dynome_analysis.labelled.connectomes import correlate_snapshot
from dynome_analysis.labelled.signatures import (
    Metric,
    Signature,
    SortedMetric,
    find_arrays,
    is_lazy,
    row_distance,
    row_matrix,
    signature_rows,
)
from dynome_analysis.provenance import provenance
from dynome_analysis.whole import check_whole
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.distance.halfplane import GroundNorm
    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["distance_matrix", "noise_floor", "reconfiguration"]

# 1 GiB of sorted weights: 128 snapshots of 2,048 units.
MEMORY_LIMIT = 1 << 30


def reconfiguration(
    signature: Signature,
    *,
    metric: Metric = "top",
    reference: Literal["previous", "first"] | Signature = "previous",
    order: float = 2.0,
    ground_norm: GroundNorm = 2,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Return the distance of every snapshot to the one before it, or to one graph for all.

    Parameters
    ----------
    signature : Dataset or DataArray
        "top", "births", "deaths": a Dataset of `graph_homology` or `analyze`. "wasserstein": of `rips` with degree 1,
        or of `analyze`. "frobenius": connectomes.
    metric : {"top", "births", "deaths", "wasserstein", "frobenius"}
        "top" compares births and deaths in closed form (the Wasserstein distance between the sorted weights), "births"
        and "deaths" one of them; "wasserstein" compares H1 diagrams
        (`dynome_analysis.distance.matching.diagram_distance`);
        "frobenius" the connectomes entry by entry.
    reference : {"previous", "first"} or a signature of one graph
        What every snapshot is compared with: the one before, the first one, or for example a `topological_centroid` or
        ``signature.isel(snapshot=7)``.
    order : float
        Of the distance; at least 1, infinite for the bottleneck distance.
    ground_norm : {2, 1, inf}
        Between points of diagrams; for "wasserstein" only.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    DataArray
        float64, (snapshot), NaN at the first snapshot for "previous". Where deaths are counted in a histogram, the
        attribute ``bound`` says how far the distances between the deaths themselves may be. Computed at once.

    Raises
    ------
    InvalidArgumentError
        Unknown metric, reference, order or norm, or a signature that does not hold what the metric reads.
    InvalidDataError
        Fewer than two snapshots, or a reference with another number of units.

    Notes
    -----
    METHODS.md sections 2 and 4 (TOP: ``s_t = d(C_t, C_t-1)`` [O]). Time linear in snapshots; a lazy signature is
    computed pair by pair.
    """
    arrays = find_arrays(signature, metric)
    rows = signature_rows(arrays, metric=metric, least=2 if isinstance(reference, str) else 1)
    pairs: list[tuple[Any, Any]]
    if isinstance(reference, str):
        if reference not in ("previous", "first"):
            raise InvalidArgumentError(
                f"reference must be 'previous', 'first' or the signature of one graph; got {reference!r}"
            )
        pairs = list(pairwise(rows)) if reference == "previous" else [(rows[0], row) for row in rows]
        compared: str = reference
    else:
        fixed = signature_rows(find_arrays(reference, metric), metric=metric, least=1)
        if len(fixed) != 1:
            raise InvalidArgumentError(
                f"a reference is one graph, this one has {len(fixed)} snapshots: choose one with isel(snapshot=...)"
            )
        pairs = [(fixed[0], row) for row in rows]
        compared = "given"
    between = dask.delayed(row_distance)
    tasks = [between(*pair, metric=metric, order=order, ground_norm=ground_norm) for pair in pairs]
    found = compute(tasks, description=f"reconfiguration ({metric})", progress=progress)
    values = [value for value, _ in found]
    return xr.DataArray(
        np.array([np.nan, *values] if compared == "previous" else values),
        dims=("snapshot",),
        coords=moments(signature),
        name="reconfiguration",
        attrs={
            **provenance(
                "reconfiguration",
                {"metric": metric, "reference": compared, **_norms(metric, order, ground_norm)},
                source=signature.attrs,
            ),
            **_bound(arrays, [bound for _, bound in found]),
        },
    )


def distance_matrix(
    signature: Signature,
    *,
    metric: Metric = "top",
    order: float = 2.0,
    ground_norm: GroundNorm = 2,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Return the distance between every two snapshots: the recurrence matrix that shows stages of training.

    Parameters
    ----------
    signature, metric, order, ground_norm, progress
        As for `reconfiguration`.
    memory_limit : int
        Bytes of sorted weights, or of connectomes, that may be held at a time. A lazy signature that exceeds it is
        computed in blocks of snapshots, every two of which meet once: with k blocks each is computed k times. A
        signature in memory is used where it is.

    Returns
    -------
    DataArray
        float64, (snapshot, snapshot_), symmetric, diagonal 0; attribute ``bound`` as for `reconfiguration`. Computed at
        once.

    Raises
    ------
    InvalidArgumentError
        Unknown metric, order or norm, a memory limit below 1, or a signature that does not hold what the metric reads.
    InvalidDataError
        Fewer than two snapshots.

    Notes
    -----
    METHODS.md section 7. O(snapshot^2 * value) time for sorted weights; one matching per pair for "wasserstein", whose
    diagrams, as histograms, are all held at once.
    """
    memory_limit = check_whole("memory_limit", memory_limit, least=1)
    arrays = find_arrays(signature, metric)
    rows = signature_rows(arrays, metric=metric)
    description = f"distance matrix ({metric})"
    bounds: list[float] = []
    if metric == "wasserstein" or any(array.name == "death_histogram" for array in arrays):
        held = compute([rows], description=f"signatures ({metric})", progress=progress)[0]
        pairs = list(combinations(range(len(rows)), 2))
        between = dask.delayed(row_distance)
        tasks = [between(held[i], held[j], metric=metric, order=order, ground_norm=ground_norm) for i, j in pairs]
        values = np.zeros((len(rows), len(rows)))
        for (i, j), (value, bound) in zip(pairs, compute(tasks, description=description, progress=progress)):
            values[i, j] = values[j, i] = value
            bounds.append(bound)
    elif is_lazy(arrays):
        nbytes = sum(array.nbytes for array in arrays)
        values = _matrix_in_blocks(rows, nbytes, memory_limit, order, description, progress)
    else:
        values = pairwise_distances(row_matrix(rows), order=order)
    taken = moments(signature)
    mirrored = {f"{name}_": ("snapshot_", values_.to_numpy()) for name, values_ in taken.items()}
    return xr.DataArray(
        values,
        dims=("snapshot", "snapshot_"),
        coords={**taken, **mirrored},
        name="distance",
        attrs={
            **provenance(
                "distance_matrix", {"metric": metric, **_norms(metric, order, ground_norm)}, source=signature.attrs
            ),
            **_bound(arrays, bounds),
        },
    )


def _matrix_in_blocks(
    rows: list[tuple[Any, ...]],
    nbytes: int,
    memory_limit: int,
    order: float,
    description: str,
    progress: Progress | None,
) -> NDArray[np.float64]:
    """Compare lazy rows block by block, so that no more than two blocks of them are in memory."""
    count = len(rows)
    size = count if nbytes <= memory_limit else max(1, memory_limit * count // (2 * nbytes))
    starts = range(0, count, size)
    pairs = [(i, j) for i in starts for j in starts if i <= j]
    values = np.zeros((count, count))
    for done, (i, j) in enumerate(pairs):
        own, others = rows[i : i + size], None if i == j else rows[j : j + size]
        task = dask.delayed(_compare_blocks)(own, others, order)
        # One block: its snapshots are what there is to report; several: the pairs of blocks.
        inner = progress if len(pairs) == 1 else None
        found = compute([task], description=description, progress=inner)[0]
        values[i : i + size, j : j + size] = found
        values[j : j + size, i : i + size] = found.T
        if progress is not None and inner is None:
            progress(description, done + 1, len(pairs))
    return values


def _compare_blocks(
    rows: list[tuple[Any, ...]], others: list[tuple[Any, ...]] | None, order: float
) -> NDArray[np.float64]:
    return pairwise_distances(row_matrix(rows), None if others is None else row_matrix(others), order=order)


def _norms(metric: Metric, order: float, ground_norm: GroundNorm) -> dict[str, str]:
    """Return what of a distance is not the default, as text: JSON has no infinity."""
    chosen = {"order": order} if order != 2 else {}
    if metric == "wasserstein" and ground_norm != 2:
        chosen["ground_norm"] = ground_norm
    return {name: f"{value:g}" for name, value in chosen.items()}


def _bound(arrays: list[xr.DataArray], bounds: list[float]) -> dict[str, float]:
    return {"bound": max(bounds)} if any(array.name == "death_histogram" for array in arrays) else {}


def noise_floor(
    recording: Recording,
    *,
    metric: SortedMetric = "deaths",
    sites: Sequence[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Return how large distances between connectomes are when only the sampling of the probe differs.

    Parameters
    ----------
    recording : Recording
    metric : {"deaths", "births", "top"}
        The distance whose noise is asked for.
    sites : str or sequence of str, optional
        Names or shell patterns; all sites by default.
    seed : int
        Of the random split of the probe's samples into two disjoint halves A and B.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Dataset
        float64 on snapshot. ``two_halves``: the distance between the connectomes of A and of B; too high a bar for
        consecutive snapshots, whose samples are the same. ``paired``: ``|s^A - s^B| / 2`` for the distances s to the
        snapshot before, NaN at the first. All NaN with fewer than four samples. Computed at once.

    Raises
    ------
    InvalidArgumentError
        Unknown metric, a pattern that matches no site, or a seed that is none.
    InvalidDataError
        Activations hold NaN or infinity.

    Notes
    -----
    METHODS.md section 8 [O]. Two connectomes of half the samples per snapshot.
    """
    if metric not in get_args(SortedMetric):
        raise InvalidArgumentError(f"metric must be one of {', '.join(get_args(SortedMetric))}; got {metric!r}")
    seed = check_whole("seed", seed, least=0)
    reader = recording.reader(sites)
    shared = dask.delayed(reader, traverse=False)
    halves = [dask.delayed(_read_halves)(shared, position, seed, metric) for position in range(len(reader.indices))]
    within = [dask.delayed(_between)(pair[0], pair[1]) for pair in halves]
    across = [
        [dask.delayed(_between)(before[half], after[half]) for before, after in pairwise(halves)] for half in (0, 1)
    ]
    flat = compute([*within, *across[0], *across[1]], description=f"noise floor ({metric})", progress=progress)
    count = len(within)
    first, second = np.array(flat[count : 2 * count - 1]), np.array(flat[2 * count - 1 :])
    return xr.Dataset(
        {
            "two_halves": ("snapshot", np.array(flat[:count], np.float64)),
            "paired": ("snapshot", np.concatenate([[np.nan], paired_floor(first, second)])),
        },
        coords={
            "epoch": ("snapshot", np.array(reader.epochs, np.int64)),
            "step": ("snapshot", np.array(reader.steps, np.int64)),
        },
        attrs=provenance(
            "noise_floor", {"metric": metric, "seed": seed, "sites": list(reader.arrays)}, recording=recording.id
        ),
    )


def _half_homologies(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, seed: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return (births, deaths) of the connectome of either half of the samples; empty with fewer than four samples."""
    if activations.shape[0] < 4:
        return []
    halves = split_samples(activations.shape[0], seed=seed)
    return [births_and_deaths(correlate_snapshot(activations[half], reader, position)[0]) for half in halves]


def _read_halves(reader: SnapshotReader, position: int, seed: int, metric: SortedMetric) -> list[Any]:
    pairs = _half_homologies(reader.joint(position), reader, position, seed)
    chosen = {"births": slice(0, 1), "deaths": slice(1, 2), "top": slice(0, 2)}[metric]
    return [pair[chosen] for pair in pairs] or [None, None]


def _between(first: Any, second: Any) -> float:
    return float("nan") if first is None or second is None else sorted_distance(first, second)

"""How far snapshots lie apart: consecutive ones, all pairs, and how much of it is noise."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.distance import diagram_distance, pairwise_distances, sorted_distance
from dynome_analysis.halves import paired_floor, split_samples
from dynome_analysis.homology import births_and_deaths
from dynome_analysis.labelled.blocks import moments, one_snapshot_per_chunk
from dynome_analysis.labelled.connectomes import correlate_snapshot
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["distance_matrix", "half_homologies", "noise_floor", "reconfiguration"]

Metric = Literal["top", "births", "deaths", "wasserstein", "frobenius"]
SortedMetric = Literal["top", "births", "deaths"]
Signature = xr.Dataset | xr.DataArray

# What each metric reads; the first entry whose variables are all there is taken.
VARIABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "top": (("births", "deaths"),),
    "births": (("births",),),
    "deaths": (("deaths",),),
    "wasserstein": (("birth", "death", "dimension"), ("h1_birth", "h1_death")),
}
MAKERS = {"wasserstein": "dya.rips", "frobenius": "dya.connectomes"}


def reconfiguration(signature: Signature, *, metric: Metric = "top", progress: Progress | None = None) -> xr.DataArray:
    """Return the distance of every snapshot to the one before it.

    Parameters
    ----------
    signature : Dataset or DataArray
        "top", "births", "deaths": a Dataset of `graph_homology` or `analyze`. "wasserstein": of `rips` with degree 1,
        or of `analyze`. "frobenius": connectomes.
    metric : {"top", "births", "deaths", "wasserstein", "frobenius"}
        "top" compares births and deaths in closed form (the 2-Wasserstein distance between the sorted weights),
        "births" and "deaths" one of them; "wasserstein" compares H1 diagrams
        (`dynome_analysis.distance.diagram_distance`); "frobenius" the connectomes entry by entry.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    DataArray
        float64, (snapshot), NaN at the first snapshot. Computed at once.

    Raises
    ------
    InvalidArgumentError
        Unknown metric, or a signature that does not hold what the metric reads.
    InvalidDataError
        Fewer than two snapshots.

    Notes
    -----
    METHODS.md sections 2 and 4 (TOP: ``s_t = d(C_t, C_t-1)`` [O]). Time linear in snapshots; a lazy signature is
    computed pair by pair.
    """
    rows = _rows(signature, metric)
    function = _distance(metric)
    tasks = [dask.delayed(function)(before, after) for before, after in pairwise(rows)]
    values = np.array([np.nan, *compute(tasks, description=f"reconfiguration ({metric})", progress=progress)])
    return xr.DataArray(
        values,
        dims=("snapshot",),
        coords=moments(signature),
        name="reconfiguration",
        attrs=provenance("reconfiguration", {"metric": metric}, source=signature.attrs),
    )


def distance_matrix(signature: Signature, *, metric: Metric = "top", progress: Progress | None = None) -> xr.DataArray:
    """Return the distance between every two snapshots: the recurrence matrix that shows stages of training.

    Parameters
    ----------
    signature, metric, progress
        As for `reconfiguration`.

    Returns
    -------
    DataArray
        float64, (snapshot, snapshot_), symmetric, diagonal 0. Computed at once; the signature is held in memory for it.

    Raises
    ------
    InvalidArgumentError
        Unknown metric, or a signature that does not hold what the metric reads.
    InvalidDataError
        Fewer than two snapshots.

    Notes
    -----
    METHODS.md section 7. O(snapshot^2 * value) time for sorted weights; one matching per pair for "wasserstein".
    """
    rows = compute([_rows(signature, metric)], description=f"signatures ({metric})", progress=progress)[0]
    count = len(rows)
    if metric == "wasserstein":
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        tasks = [dask.delayed(diagram_distance)(rows[i][0], rows[j][0]) for i, j in pairs]
        values = np.zeros((count, count))
        for (i, j), value in zip(pairs, compute(tasks, description="distance matrix", progress=progress)):
            values[i, j] = values[j, i] = value
    else:
        values = pairwise_distances([np.stack([part.reshape(-1) for part in parts]) for parts in zip(*rows)])
    taken = moments(signature)
    mirrored = {f"{name}_": ("snapshot_", values_.to_numpy()) for name, values_ in taken.items()}
    return xr.DataArray(
        values,
        dims=("snapshot", "snapshot_"),
        coords={**taken, **mirrored},
        name="distance",
        attrs=provenance("distance_matrix", {"metric": metric}, source=signature.attrs),
    )


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
        Unknown metric, or a pattern that matches no site.
    InvalidDataError
        Activations hold NaN or infinity.

    Notes
    -----
    METHODS.md section 8 [O]. Two connectomes of half the samples per snapshot.
    """
    if metric not in get_args(SortedMetric):
        raise InvalidArgumentError(f"metric must be one of {', '.join(get_args(SortedMetric))}; got {metric!r}")
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


def half_homologies(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, seed: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return (births, deaths) of the connectome of either half of the samples; empty with fewer than four samples."""
    if activations.shape[0] < 4:
        return []
    halves = split_samples(activations.shape[0], seed=seed)
    return [births_and_deaths(correlate_snapshot(activations[half], reader, position)[0]) for half in halves]


def _read_halves(reader: SnapshotReader, position: int, seed: int, metric: SortedMetric) -> list[Any]:
    pairs = half_homologies(reader.joint(position), reader, position, seed)
    chosen = {"births": slice(0, 1), "deaths": slice(1, 2), "top": slice(0, 2)}[metric]
    return [pair[chosen] for pair in pairs] or [None, None]


def _between(first: Any, second: Any) -> float:
    return float("nan") if first is None or second is None else sorted_distance(first, second)


def _distance(metric: Metric) -> Callable[[Any, Any], float]:
    if metric == "wasserstein":
        return lambda before, after: diagram_distance(before[0], after[0])
    return sorted_distance


def _rows(signature: Signature, metric: Metric) -> list[tuple[Any, ...]]:
    """Return per snapshot the arrays that a metric compares, lazy where the signature is."""
    if metric not in get_args(Metric):
        raise InvalidArgumentError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")
    arrays = _arrays(signature, metric)
    count = arrays[0].sizes["snapshot"]
    if count < 2:
        raise InvalidDataError(f"a distance between snapshots needs at least two of them; this signature has {count}")
    columns = []
    for array in arrays:
        if array.chunks is None:
            columns.append(list(array.to_numpy()))
        else:
            blocks = one_snapshot_per_chunk(array).data.to_delayed().reshape(count)
            columns.append([dask.delayed(_first)(block) for block in blocks])
    rows = list(zip(*columns))
    if metric == "wasserstein":
        if any(array.chunks is not None for array in arrays):
            return [(dask.delayed(_diagram)(*row),) for row in rows]
        return [(_diagram(*row),) for row in rows]
    return rows


def _arrays(signature: Signature, metric: Metric) -> list[xr.DataArray]:
    if metric == "frobenius":
        if isinstance(signature, xr.DataArray) and signature.dims == ("snapshot", "unit", "unit_"):
            return [signature]
    elif isinstance(signature, xr.Dataset):
        for names in VARIABLES[metric]:
            if all(name in signature for name in names):
                return [signature[name] for name in names]
    maker = MAKERS.get(metric, "dya.graph_homology")
    raise InvalidArgumentError(f"metric {metric!r} needs a result of {maker}; this signature holds something else")


def _first(block: Any) -> Any:
    return block[0]


def _diagram(
    birth: NDArray[np.float64], death: NDArray[np.float64], dimension: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the H1 points of one snapshot without their padding."""
    kept = np.isfinite(birth) if dimension is None else dimension == 1
    return np.column_stack([birth[kept], death[kept]])
